"""What a router tells the loss: how uneven its choices are, how large its scores."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lmx.core.mean import Mean


def chosen(
    experts: Int[Array, "B T C"], count: int, live: Bool[Array, "B T"]
) -> Int[Array, "B T E"]:
    """1 where a live token goes to an expert."""
    hot_BTCE = jax.nn.one_hot(experts, count, dtype="int32")
    return hot_BTCE.sum(axis=2) * live[:, :, None]


def balance(
    probs: Float[Array, "B T E"],
    experts: Int[Array, "B T C"],
    live: Bool[Array, "B T"],
) -> Mean:
    """1 when every expert gets the same share of a row, E when one gets all of it.

    Fedus et al. 2021, arXiv:2101.03961, equation 4, for any number of choices, and row
    by row as in DeepSeek-AI 2024, arXiv:2412.19437, section 2.1.2: rows add up, where
    products of batch means would not. Weighed by live tokens.
    """
    E, C = probs.shape[-1], experts.shape[-1]
    tokens_B = live.sum(axis=1).astype(probs.dtype)
    share_BE = chosen(experts, E, live).sum(axis=1) / C
    mass_BE = (probs * live[:, :, None]).sum(axis=1)
    some_B = jnp.maximum(tokens_B, 1.0)
    total = E * ((share_BE * mass_BE).sum(axis=-1) / some_B).sum()
    return Mean(total, tokens_B.sum())


def router_z(logits: Float[Array, "B T E"], live: Bool[Array, "B T"]) -> Mean:
    """Squared log of the softmax's denominator. Zoph et al. 2022, arXiv:2202.08906."""
    z_BT = jax.nn.logsumexp(logits, axis=-1) ** 2
    return Mean((z_BT * live).sum(), live.sum().astype(logits.dtype))


def load(
    bias: Float[Array, "E"], experts: Int[Array, "B T C"], live: Bool[Array, "B T"]
) -> Mean:
    """Always 0, with a gradient that says by how much each expert is overloaded.

    Its sign is what moves the bias, so that any positive weight means the same. Wang et
    al. 2024, arXiv:2408.15664, algorithm 1.
    """
    E = bias.shape[0]
    load_E = chosen(experts, E, live).sum(axis=(0, 1))
    excess_E = (E * load_E - load_E.sum()).astype(bias.dtype)  # E times that over mean
    total = (excess_E * (bias - jax.lax.stop_gradient(bias))).sum()
    return Mean(total, live.sum().astype(bias.dtype))
