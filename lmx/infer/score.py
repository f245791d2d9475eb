"""Log-probabilities that a model assigns to given tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lmx.models.decoder import Decoder


def compute_logprobs(
    model: Decoder,
    tokens: Int[Array, "B T"],
    segments: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """The log-probability of each token given those before it, in nats.

    `segments` numbers the documents of a row, with 0 for padding; by default a row is
    one document. The value is 0 at the first token of a document, and at padding.
    """
    if segments is None:
        segments = jnp.ones_like(tokens)
    logits_BTV = model(tokens, None, segments)[:, :-1]
    target_BT1 = jnp.take_along_axis(logits_BTV, tokens[:, 1:, None], axis=-1)
    logprobs_BT = target_BT1[:, :, 0] - jax.nn.logsumexp(logits_BTV, axis=-1)
    follows_BT = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return jnp.pad(jnp.where(follows_BT, logprobs_BT, 0), ((0, 0), (1, 0)))
