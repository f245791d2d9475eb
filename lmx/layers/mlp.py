"""What follows attention in a block: one feed-forward layer, or many (`moe`)."""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lmx.config.registry import configurable
from lmx.core.mean import Aux
from lmx.layers.init import Init
from lmx.layers.linear import Einsum

Activation = Callable[[Array], Array]
gelu = partial(jax.nn.gelu, approximate=True)  # the tanh form, as GPT-2's


def relu_squared(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """max(0, x)^2. So et al. 2021, arXiv:2109.08668 (Primer)."""
    return jnp.square(jax.nn.relu(x))


class FeedForward(nnx.Module):
    """Anything that maps each token to a new vector, with its auxiliary losses.

    `segments` are the documents of a row, 0 at padding, which no auxiliary loss counts.

    Attributes:
        share: of the weights indexed by experts, how many a token is multiplied with.
        causal: whether what a token gets depends on no token after it.
    """

    active_fraction: float = 1.0
    causal: bool = True

    @abstractmethod
    def __call__(
        self, x: Float[Array, "B T D"], segments: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], Aux]:
        """What is added to `x`, and the auxiliary losses by name."""


class MLP(FeedForward):
    """down(activation(up(x))); `linear` makes both, `@EinsumBias` with offsets."""

    activation: Activation

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        hidden: int,
        linear: Callable[..., Einsum] = Einsum,
    ):
        sizes = dict(D=width, F=hidden)
        self.up = linear("BTD,DF->BTF", sizes, init)
        self.down = linear("BTF,FD->BTD", sizes, init, "residual")

    def __call__(
        self, x: Float[Array, "B T D"], segments: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], Aux]:
        return self.down(type(self).activation(self.up(x))), {}


class GatedMLP(FeedForward):
    """down(activation(gate(x)) * up(x)). Shazeer 2020, arXiv:2002.05202.

    `linear` makes all three, `@EinsumBias` with offsets.
    """

    activation: Activation

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        hidden: int,
        linear: Callable[..., Einsum] = Einsum,
    ):
        sizes = dict(D=width, F=hidden)
        self.gate = linear("BTD,DF->BTF", sizes, init)
        self.up = linear("BTD,DF->BTF", sizes, init)
        self.down = linear("BTF,FD->BTD", sizes, init, "residual")

    def __call__(
        self, x: Float[Array, "B T D"], segments: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], Aux]:
        return self.down(type(self).activation(self.gate(x)) * self.up(x)), {}


@configurable
class GELU(MLP):
    """Hendrycks and Gimpel 2016, arXiv:1606.08415, in its tanh form."""

    activation = staticmethod(gelu)


@configurable
class ReLU2(MLP):
    """Squared rectifier. So et al. 2021, arXiv:2109.08668."""

    activation = staticmethod(relu_squared)


@configurable
class SwiGLU(GatedMLP):
    """Gated by a sigmoid linear unit. Shazeer 2020, arXiv:2002.05202."""

    activation = staticmethod(jax.nn.silu)


@configurable
class GeGLU(GatedMLP):
    """Gated by a Gaussian error linear unit. Shazeer 2020, arXiv:2002.05202."""

    activation = staticmethod(gelu)
