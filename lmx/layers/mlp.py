"""Feed-forward layers: plain and gated MLPs; those with experts are in `moe`."""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lmx.config.registry import Positive, configurable
from lmx.core.mean import Aux
from lmx.layers.init import Init
from lmx.layers.linear import Einsum
from lmx.layers.tap import tap

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
        hidden: Positive[int],
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
            hidden_BTF = activate(self.gate(x)) * self.up(x)
        else:
            hidden_BTF = activate(self.up(x))
        return self.down(tap("mlp.hidden", hidden_BTF)), {}


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
