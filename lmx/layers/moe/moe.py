"""A mixture of experts: each token's weighted sum of the answers of a few."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lmx.config.registry import configurable
from lmx.core.mean import Aux
from lmx.layers.init import Init
from lmx.layers.mlp import FeedForward
from lmx.layers.moe.capacity import CapacityDispatch
from lmx.layers.moe.dropless import DroplessDispatch
from lmx.layers.moe.experts import ExpertMatmul, Experts, Weights, clamped_swiglu
from lmx.layers.moe.router import Router


@configurable
class MoE(Experts):
    """Each token's weighted sum of the few of many SwiGLU layers that it chose."""

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        experts: int,
        hidden: int,
        router: Callable[..., Router],
        dispatch: DroplessDispatch | CapacityDispatch = DroplessDispatch(),
        shared: Callable[..., FeedForward] | None = None,
    ):
        self.router = router(width, experts, init)
        super().__init__(width, init, experts=experts, hidden=hidden, shared=shared)
        self.active_fraction = self.router.top_k / experts
        self.dispatch = dispatch

    def apply_routed(
        self, x: Float[Array, "B T D"], segments: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], Aux]:
        routing, aux = self.router(x, segments)
        y_BTD, more = self.dispatch(x, segments > 0, routing, self)
        return y_BTD, {**aux, **more}


@configurable
class ClampedMoE(MoE):
    """`MoE` of gpt-oss's experts: offsets everywhere, and clamped in between.

    Attributes:
        limit, slope: of `clamped_swiglu`, by default as in the released code.
    """

    weight_letters = {
        **MoE.weight_letters,
        "gate_b": "EF",
        "up_b": "EF",
        "down_b": "ED",
    }

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        experts: int,
        hidden: int,
        router: Callable[..., Router],
        dispatch: DroplessDispatch | CapacityDispatch = DroplessDispatch(),
        shared: Callable[..., FeedForward] | None = None,
        limit: float = 7.0,
        alpha: float = 1.702,
    ):
        super().__init__(
            width,
            init,
            experts=experts,
            hidden=hidden,
            router=router,
            dispatch=dispatch,
            shared=shared,
        )
        sizes = dict(D=width, E=experts, F=hidden)
        self.gate_b = init.full("EF", sizes, 0.0)
        self.up_b = init.full("EF", sizes, 0.0)
        self.down_b = init.full("ED", sizes, 0.0)
        self.limit, self.alpha = limit, alpha

    def activate(
        self, gate: Float[Array, "*rows F"], up: Float[Array, "*rows F"]
    ) -> Float[Array, "*rows F"]:
        return clamped_swiglu(gate, up, self.limit, self.alpha)

    def project(
        self,
        name: str,
        x: Float[Array, "*rows _"],
        matmul: ExpertMatmul,
        weights: Weights,
    ) -> Float[Array, "*rows _"]:
        ones, offset_E1F = jnp.ones_like(x[..., :1]), weights[f"{name}_b"][:, None]
        return super().project(name, x, matmul, weights) + matmul(ones, offset_E1F)
