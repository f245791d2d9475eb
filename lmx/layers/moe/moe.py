"""Mixture-of-experts (MoE) layers: token choice and expert choice."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float

from lmx.config.registry import Positive, configurable
from lmx.core.precision import upcast
from lmx.layers.init import Init
from lmx.layers.linear import Einsum
from lmx.layers.mlp import FeedForward
from lmx.layers.moe.dispatch import (
    CapacityDispatch,
    DroplessDispatch,
    compute_capacities,
)
from lmx.layers.moe.experts import Experts
from lmx.layers.moe.router import Router, check_top_k


@configurable
class MoE(Experts):
    """Each token gets the weighted sum of the outputs of its experts."""

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        experts: Positive[int],
        hidden: Positive[int],
        router: Callable[..., Router],
        dispatch: DroplessDispatch | CapacityDispatch = DroplessDispatch(),
        shared: Callable[..., FeedForward] | None = None,
    ):
        self.router = router(width, experts, init)
        super().__init__(width, init, experts=experts, hidden=hidden, shared=shared)
        self.active_fraction = self.router.top_k / experts
        self.dispatch = dispatch

    def apply_routed(self, x, segments):
        routing, router_aux = self.router(x, segments)
        y_BTD, aux = self.dispatch(x, segments > 0, routing, self)
        return y_BTD, {**router_aux, **aux}


@configurable
class ClampedMoE(MoE):
    """`MoE` with the experts of gpt-oss: biases, and a clamped SwiGLU.

    Gate * sigmoid(alpha * gate) * (up + 1), with gate and up clamped at `limit`. OpenAI
    2025, arXiv:2508.10925, section 2.2, and its released code.
    """

    weight_names = (*MoE.weight_names, "gate_b", "up_b", "down_b")

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        experts: Positive[int],
        hidden: Positive[int],
        limit: Positive[float] = 7.0,
        alpha: float = 1.702,
        **kwargs: Any,
    ):
        super().__init__(width, init, experts=experts, hidden=hidden, **kwargs)
        sizes = dict(D=width, E=experts, F=hidden)
        self.gate_b = init.full("EF", sizes, 0.0)
        self.up_b = init.full("EF", sizes, 0.0)
        self.down_b = init.full("ED", sizes, 0.0)
        self.limit, self.alpha = limit, alpha

    def activate(self, gate, up):
        gate = jnp.minimum(gate, self.limit)
        up = jnp.clip(up, -self.limit, self.limit)
        return gate * jax.nn.sigmoid(self.alpha * gate) * (up + 1)

    def project(self, name, x, matmul, weights):
        ones, bias_E1F = jnp.ones_like(x[..., :1]), weights[f"{name}_b"][:, None]
        return super().project(name, x, matmul, weights) + matmul(ones, bias_E1F)


@configurable
class ExpertChoice(Experts):
    """Each expert chooses the tokens of a row with the highest scores.

    A token has `capacity_factor` experts on average, between none and all. The choice
    depends on later tokens, so such a model cannot generate. Zhou et al. 2022,
    arXiv:2202.09368.
    """

    causal = False

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        experts: Positive[int],
        hidden: Positive[int],
        capacity_factor: Positive[int],
        shared: Callable[..., FeedForward] | None = None,
    ):
        check_top_k("ExpertChoice.capacity_factor", capacity_factor, experts)
        self.score = Einsum("BTD,DE->BTE", dict(D=width, E=experts), init)
        super().__init__(width, init, experts=experts, hidden=hidden, shared=shared)
        self.active_fraction = capacity_factor / experts

    def apply_routed(self, x, segments):
        probs_BTE = jax.nn.softmax(self.score(upcast(x)), axis=-1)
        mask_BEMT = choose_tokens(probs_BTE, segments > 0, self.active_fraction)
        mask_BEMT = mask_BEMT.astype(x.dtype)
        x_EBMD = jnp.einsum("BEMT,BTD->EBMD", mask_BEMT, x)
        x_EMD = rearrange(x_EBMD, "E B M D -> E (B M) D")
        y_EMD = self.apply_experts(x_EMD, jnp.matmul, self.cast_weights(x.dtype))
        y_EBMD = rearrange(y_EMD, "E (B M) D -> E B M D", B=len(x))
        weights_BEM = jnp.einsum("BEMT,BTE->BEM", mask_BEMT, probs_BTE.astype(x.dtype))
        return jnp.einsum("BEMT,EBMD,BEM->BTD", mask_BEMT, y_EBMD, weights_BEM), {}


def choose_tokens(
    probs: Float[Array, "B T E"], unpadded: Bool[Array, "B T"], fraction: float
) -> Bool[Array, "B E M T"]:
    """One-hot tokens in each slot of each expert: a `fraction` of the unpadded ones."""
    T = unpadded.shape[1]
    capacities = compute_capacities(T, fraction)
    scores_BET = jnp.where(unpadded[:, :, None], probs, -1.0).swapaxes(1, 2)
    tokens_BEM = jax.lax.top_k(scores_BET, capacities[-1])[1]
    used_BM = np.arange(capacities[-1]) < capacities[:, None]
    used_BM = jnp.asarray(used_BM)[unpadded.sum(axis=1)]
    return jax.nn.one_hot(tokens_BEM, T, dtype="bool") & used_BM[:, None, :, None]
