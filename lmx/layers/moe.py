"""A mixture of experts in which no token is ever dropped.

Tokens are sorted by expert and multiplied group by group, as in Gale et al. 2022,
arXiv:2211.15841, so an overloaded expert is slower but never lossy.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lmx.config.names import configurable
from lmx.core.mean import Aux, Mean
from lmx.core.precision import widened
from lmx.layers.init import Init
from lmx.layers.linear import Einsum
from lmx.layers.mlp import FeedForward


class Routing(NamedTuple):
    """Which experts each token goes to, and how much of each answer it takes."""

    experts: Int[Array, "B T C"]
    weights: Float[Array, "B T C"]  # sum to 1 over a token's choices


def top_k(logits: Float[Array, "B T E"], choices: int) -> Routing:
    """Each token's best experts, weighted by a softmax over those alone."""
    best_BTC, experts_BTC = jax.lax.top_k(logits, choices)
    return Routing(experts_BTC, jax.nn.softmax(best_BTC, axis=-1))


def balance(
    logits: Float[Array, "B T E"],
    experts: Int[Array, "B T C"],
    live: Bool[Array, "B T"],
) -> Mean:
    """1 when every expert gets the same share of a row, E when one gets all of it.

    Fedus et al. 2021, arXiv:2101.03961, equation 4, for any number of choices, and row
    by row as in DeepSeek-AI 2024, arXiv:2412.19437, section 2.1.2: rows add up, where
    products of batch means would not. Weighed by live tokens.
    """
    E, C = logits.shape[-1], experts.shape[-1]
    chosen_BTE = jax.nn.one_hot(experts, E, dtype=logits.dtype).sum(axis=2)
    probs_BTE = jax.nn.softmax(logits, axis=-1)
    live_BT1 = live[:, :, None].astype(logits.dtype)
    tokens_B = live_BT1.sum(axis=(1, 2))
    share_BE = (chosen_BTE * live_BT1).sum(axis=1) / C
    mass_BE = (probs_BTE * live_BT1).sum(axis=1)
    some_B = jnp.maximum(tokens_B, 1.0)
    total = E * ((share_BE * mass_BE).sum(axis=-1) / some_B).sum()
    return Mean(total, tokens_B.sum())


def router_z(logits: Float[Array, "B T E"], live: Bool[Array, "B T"]) -> Mean:
    """Squared log of the softmax's denominator. Zoph et al. 2022, arXiv:2202.08906."""
    z_BT = jax.nn.logsumexp(logits, axis=-1) ** 2
    return Mean((z_BT * live).sum(), live.sum().astype(logits.dtype))


def swiglu_experts(
    x: Float[Array, "M D"],
    counts: Int[Array, "E"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
) -> Float[Array, "M D"]:
    """SwiGLU of each row by its expert: the first counts[0] rows belong to expert 0."""
    gate_MF = jax.lax.ragged_dot(x, gate, counts)
    up_MF = jax.lax.ragged_dot(x, up, counts)
    return jax.lax.ragged_dot(jax.nn.silu(gate_MF) * up_MF, down, counts)


@configurable
class TopK(nnx.Module):
    """Scores every expert for every token, in at least float32, and keeps the best."""

    def __init__(self, width: int, experts: int, init: Init, *, choices: int):
        if not 0 < choices <= experts:
            raise ValueError(
                f"a token cannot choose {choices} of {experts} experts: TopK.choices"
                " must be 1 or more, and at most MoE.experts."
            )
        self.choices = choices
        self.score = Einsum("BTD,DE->BTE", dict(D=width, E=experts), init)

    def __call__(
        self, x: Float[Array, "B T D"], live: Bool[Array, "B T"]
    ) -> tuple[Routing, Aux]:
        logits_BTE = self.score(widened(x))
        routing = top_k(logits_BTE, self.choices)
        aux = {
            "balance": balance(logits_BTE, routing.experts, live),
            "router_z": router_z(logits_BTE, live),
        }
        return routing, aux


@configurable
class MoE(FeedForward):
    """Each token's weighted sum of a few of many SwiGLU layers."""

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        experts: int,
        hidden: int,
        router: Callable[..., TopK],
    ):
        sizes = dict(D=width, E=experts, F=hidden)
        self.router = router(width, experts, init)
        self.share = self.router.choices / experts
        self.gate = init.weight("EDF", sizes, into="D", out_of="F")
        self.up = init.weight("EDF", sizes, into="D", out_of="F")
        self.down = init.weight("EFD", sizes, into="F", out_of="D", role="residual")

    def __call__(
        self, x: Float[Array, "B T D"], live: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], Aux]:
        routing, aux = self.router(x, live)
        B, T, C = routing.experts.shape
        expert_M = rearrange(routing.experts, "B T C -> (B T C)")
        order_M = jnp.argsort(expert_M)
        counts_E = jnp.bincount(expert_M, length=self.gate.shape[0])
        weights = [w[...].astype(x.dtype) for w in (self.gate, self.up, self.down)]
        x_MD = rearrange(x, "B T D -> (B T) D")[order_M // C]
        y_MD = swiglu_experts(x_MD, counts_E.astype("int32"), *weights)
        y_BTCD = y_MD[jnp.argsort(order_M)].reshape(B, T, C, -1)
        weights_BTC = routing.weights.astype(x.dtype)
        return jnp.einsum("BTCD,BTC->BTD", y_BTCD, weights_BTC), aux
