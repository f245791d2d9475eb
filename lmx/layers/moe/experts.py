"""Experts: SwiGLU layers with stacked weights, of which each token uses a few."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lmx.core.mean import Aux
from lmx.layers.init import Init
from lmx.layers.linear import cast_weight, contract_grouped
from lmx.layers.mlp import FeedForward

# Multiplies each row with the matrix of its expert.
ExpertMatmul = Callable[[Array, Array], Array]
Weights = Mapping[str, Any]  # `AnyWeight`


class Experts(FeedForward):
    """Base class of layers with routed experts (SwiGLU), and a shared one (`shared`).

    The shared one serves every token: Dai et al. 2024, arXiv:2401.06066, section 3.2.
    `weight_names` are the parameters that have an experts axis, as their first.
    """

    weight_names: ClassVar[tuple[str, ...]] = ("gate", "up", "down")

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        experts: int,
        hidden: int,
        shared: Callable[..., FeedForward] | None = None,
    ):
        sizes = dict(D=width, E=experts, F=hidden)
        self.gate = init.weight("EDF", sizes, in_dims="D", out_dims="F")
        self.up = init.weight("EDF", sizes, in_dims="D", out_dims="F")
        self.down = init.weight(
            "EFD", sizes, in_dims="F", out_dims="D", role="residual"
        )
        self.shared = shared and shared(width, init)
        self.experts = experts

    @abstractmethod
    def apply_routed(
        self, x: Float[Array, "B T D"], segments: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], Aux]:
        """The output of the routed experts."""

    def __call__(self, x, segments):
        y_BTD, aux = self.apply_routed(x, segments)
        if self.shared:
            shared_BTD, shared_aux = self.shared(x, segments)
            y_BTD, aux = y_BTD + shared_BTD, {**aux, **shared_aux}
        return y_BTD, aux

    def cast_weights(self, dtype: jnp.dtype) -> Weights:
        """The weights with an experts axis, by name."""
        return {
            name: cast_weight(getattr(self, name), dtype) for name in self.weight_names
        }

    def apply_experts(
        self, x: Float[Array, "*rows D"], matmul: ExpertMatmul, weights: Weights
    ) -> Float[Array, "*rows D"]:
        """The output of each row's expert; a partial sum if F is sharded."""
        gate, up = (self.project(name, x, matmul, weights) for name in ("gate", "up"))
        return self.project("down", self.activate(gate, up), matmul, weights)

    def activate(
        self, gate: Float[Array, "*rows F"], up: Float[Array, "*rows F"]
    ) -> Float[Array, "*rows F"]:
        """silu(gate) * up. Shazeer 2020, arXiv:2002.05202."""
        return jax.nn.silu(gate) * up

    def project(
        self,
        name: str,
        x: Float[Array, "*rows _"],
        matmul: ExpertMatmul,
        weights: Weights,
    ) -> Float[Array, "*rows _"]:
        """Each row times the weight `name` of its expert."""
        return contract_grouped(matmul, x, weights[name])
