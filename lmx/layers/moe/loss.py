"""What a router tells the loss: how uneven its choices are, how large its scores."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lmx.core.mean import Mean


def count_choices(
    experts: Int[Array, "B T C"], count: int, unpadded: Bool[Array, "B T"]
) -> Int[Array, "B T E"]:
    """1 where a live token goes to an expert."""
    hot_BTCE = jax.nn.one_hot(experts, count, dtype="int32")
    return hot_BTCE.sum(axis=2) * unpadded[:, :, None]


def sum_per_document(
    values: Int[Array, "B T E"], segments: Int[Array, "B T"]
) -> Int[Array, "B T E"]:
    """At each token, the sum of the values of its document: a run of one segment."""
    number_BT = jnp.cumsum(jnp.diff(segments, axis=1, prepend=0) != 0, axis=1)
    add = partial(jax.ops.segment_sum, num_segments=segments.shape[1] + 1)
    sums = jax.vmap(add)(values, number_BT)
    return jnp.take_along_axis(sums, number_BT[:, :, None], axis=1)


def balance_loss(
    probs: Float[Array, "B T E"],
    experts: Int[Array, "B T C"],
    segments: Int[Array, "B T"],
) -> Mean:
    """1 when every expert gets the same share of a document, E when one gets all of it.

    Fedus et al. 2021, arXiv:2101.03961, equation 4, for any number of choices, and text
    by text as in DeepSeek-AI 2024, arXiv:2412.19437, section 2.1.2: documents add up,
    however they are packed, where products of batch means would not. Weighed by live
    tokens.
    """
    E, live_BT = probs.shape[-1], segments > 0
    counts_BTE = sum_per_document(count_choices(experts, E, live_BT), segments)
    some_BT1 = jnp.maximum(counts_BTE.sum(axis=-1, keepdims=True), 1)
    share_BTE = (counts_BTE / some_BT1).astype(probs.dtype)  # of a document's choices
    total = E * (probs * share_BTE * live_BT[:, :, None]).sum()
    return Mean(total, live_BT.sum().astype(probs.dtype))


def router_z_loss(logits: Float[Array, "B T E"], unpadded: Bool[Array, "B T"]) -> Mean:
    """Squared log of the softmax's denominator. Zoph et al. 2022, arXiv:2202.08906."""
    z_BT = jax.nn.logsumexp(logits, axis=-1) ** 2
    return Mean((z_BT * unpadded).sum(), unpadded.sum().astype(logits.dtype))


def load_bias_loss(
    bias: Float[Array, "E"], experts: Int[Array, "B T C"], unpadded: Bool[Array, "B T"]
) -> Mean:
    """Always 0, with a gradient that says by how much each expert is overloaded.

    Its sign is what moves the bias, so that any positive weight means the same. Wang et
    al. 2024, arXiv:2408.15664, algorithm 1.
    """
    E = bias.shape[0]
    load_E = count_choices(experts, E, unpadded).sum(axis=(0, 1))
    excess_E = (E * load_E - load_E.sum()).astype(bias.dtype)  # E times that over mean
    total = (excess_E * (bias - jax.lax.stop_gradient(bias))).sum()
    return Mean(total, unpadded.sum().astype(bias.dtype))
