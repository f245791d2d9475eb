"""What a model thinks of given tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lmx.models.decoder import Decoder


def logprobs(
    model: Decoder,
    tokens: Int[Array, "B T"],
    segments: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """The log-probability of each token given those before it, in nats.

    Each sees the tokens of its own document only: `segments`, 0 for padding; a row is
    one document if there are none. 0 at the first of a document, and at padding.
    """
    if segments is None:
        segments = jnp.ones_like(tokens)
    logits_BTV = model(tokens, None, segments)[:, :-1]
    hit_BT1 = jnp.take_along_axis(logits_BTV, tokens[:, 1:, None], axis=-1)
    found_BT = hit_BT1[:, :, 0] - jax.nn.logsumexp(logits_BTV, axis=-1)
    preceded_BT = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return jnp.pad(jnp.where(preceded_BT, found_BT, 0), ((0, 0), (1, 0)))
