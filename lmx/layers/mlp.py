"""Feed-forward layers: MLPs, and the experts of a mixture; routing is in `moe`."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lmx.config.registry import configurable
from lmx.core.mean import Aux
from lmx.layers.init import Init
from lmx.layers.linear import Einsum

gelu = partial(jax.nn.gelu, approximate=True)  # the tanh form, as in GPT-2


class FeedForward(nnx.Module):
    """Base class of layers that map each token to a vector, with auxiliary losses.

    Attributes:
        active_fraction: of weights with an experts axis, the fraction that each token
            is multiplied with.
        causal: whether the output of a token depends on no later token.
    """

    active_fraction: float = 1.0
    causal: bool = True

    @abstractmethod
    def __call__(
        self, x: Float[Array, "B T D"], segments: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], Aux]:
        """The change of `x`, and the auxiliary losses by name."""


class MLP(FeedForward):
    """down(act(up(x))), or, if `gated`, down(act(gate(x)) * up(x))."""

    activation: ClassVar[Callable[[Array], Array]]
    gated: ClassVar[bool] = False

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        hidden: int,
        linear: Callable[..., Einsum] = Einsum,
    ):
        sizes = dict(D=width, F=hidden)
        if self.gated:
            self.gate = linear("BTD,DF->BTF", sizes, init)
        self.up = linear("BTD,DF->BTF", sizes, init)
        self.down = linear("BTF,FD->BTD", sizes, init, "residual")

    def __call__(self, x, segments):
        activate = type(self).activation
        if self.gated:
            return self.down(activate(self.gate(x)) * self.up(x)), {}
        return self.down(activate(self.up(x))), {}


@configurable
class GELU(MLP):
    """GELU in its tanh form. Hendrycks and Gimpel 2016, arXiv:1606.08415."""

    activation = staticmethod(gelu)


@configurable
class ReLU2(MLP):
    """max(0, x)^2. So et al. 2021, arXiv:2109.08668 (Primer)."""

    activation = staticmethod(lambda x: jnp.square(jax.nn.relu(x)))


@configurable
class SwiGLU(MLP):
    """Gated by SiLU. Shazeer 2020, arXiv:2002.05202."""

    activation, gated = staticmethod(jax.nn.silu), True


@configurable
class GeGLU(MLP):
    """Gated by GELU. Shazeer 2020, arXiv:2002.05202."""

    activation, gated = staticmethod(gelu), True


# Multiplies each row with the matrix of its expert.
ExpertMatmul = Callable[[Array, Array], Array]
Weights = Mapping[str, Array]


class Experts(FeedForward):
    """Base class of layers with routed experts (SwiGLU), and a shared one (`shared`).

    The shared one serves every token: Dai et al. 2024, arXiv:2401.06066, section 3.2.
    `weight_letters` are the dimensions of the weights that have an experts axis.
    """

    weight_letters: ClassVar[Mapping[str, str]] = {
        "gate": "EDF",
        "up": "EDF",
        "down": "EFD",
    }

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
            name: getattr(self, name)[...].astype(dtype) for name in self.weight_letters
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
        return matmul(x, weights[name])
