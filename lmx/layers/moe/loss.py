"""Auxiliary losses of MoE routers: load balance and router z-loss."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lmx.core.mean import Mean


def count_choices(
    experts: Int[Array, "B T C"], count: int, unpadded: Bool[Array, "B T"]
) -> Int[Array, "B T E"]:
    """1 where an unpadded token goes to an expert, of `count`."""
    one_hot_BTCE = jax.nn.one_hot(experts, count, dtype="int32")
    return one_hot_BTCE.sum(axis=2) * unpadded[:, :, None]


def sum_per_document(
    values: Int[Array, "B T E"], segments: Int[Array, "B T"]
) -> Int[Array, "B T E"]:
    """At each token, the sum over its document, a run of equal segments."""
    number_BT = jnp.cumsum(jnp.diff(segments, axis=1, prepend=0) != 0, axis=1)
    add = partial(jax.ops.segment_sum, num_segments=segments.shape[1] + 1)
    sums = jax.vmap(add)(values, number_BT)
    return jnp.take_along_axis(sums, number_BT[:, :, None], axis=1)


def balance_loss(
    probs: Float[Array, "B T E"],
    experts: Int[Array, "B T C"],
    segments: Int[Array, "B T"],
) -> Mean:
    """1 if every expert gets an equal share of a document, E if one gets all of it.

    Fedus et al. 2021, arXiv:2101.03961, equation 4, for any number of choices, computed
    per document as in DeepSeek-AI 2024, arXiv:2412.19437, section 2.1.2, so that it
    does not depend on packing or on the batch size. Weighted by unpadded tokens.
    """
    E, unpadded_BT = probs.shape[-1], segments > 0
    counts_BTE = sum_per_document(count_choices(experts, E, unpadded_BT), segments)
    total_BT1 = jnp.maximum(counts_BTE.sum(axis=-1, keepdims=True), 1)
    fraction_BTE = (counts_BTE / total_BT1).astype(probs.dtype)
    total = E * (probs * fraction_BTE * unpadded_BT[:, :, None]).sum()
    return Mean(total, unpadded_BT.sum().astype(probs.dtype))


def router_z_loss(logits: Float[Array, "B T E"], unpadded: Bool[Array, "B T"]) -> Mean:
    """Squared log of the softmax denominator. Zoph et al. 2022, arXiv:2202.08906."""
    z_BT = jax.nn.logsumexp(logits, axis=-1) ** 2
    return Mean((z_BT * unpadded).sum(), unpadded.sum().astype(logits.dtype))


def load_bias_loss(
    bias: Float[Array, "E"], experts: Int[Array, "B T C"], unpadded: Bool[Array, "B T"]
) -> Mean:
    """Always 0; its gradient is the overload of each expert.

    Only the sign of the gradient updates the bias, so the weight of this loss does not
    matter. Wang et al. 2024, arXiv:2408.15664, algorithm 1.
    """
    E = bias.shape[0]
    load_E = count_choices(experts, E, unpadded).sum(axis=(0, 1))
    excess_E = (E * load_E - load_E.sum()).astype(bias.dtype)  # E times the overload
    total = (excess_E * (bias - jax.lax.stop_gradient(bias))).sum()
    return Mean(total, unpadded.sum().astype(bias.dtype))
