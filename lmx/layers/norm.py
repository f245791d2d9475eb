"""Normalization of activations over their last dimension."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lmx.config.registry import NonNegative, configurable
from lmx.core.precision import upcast
from lmx.layers.init import Init


def rms_norm(
    x: Float[Array, "*rows D"], scale: Float[Array, "D"], epsilon: float
) -> Float[Array, "*rows D"]:
    """`x` at root-mean-square `scale`. Zhang and Sennrich 2019, arXiv:1910.07467."""
    wide = upcast(x)
    power = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    unit = (wide * jax.lax.rsqrt(power + epsilon)).astype(x.dtype)
    return unit * jnp.broadcast_to(scale.astype(x.dtype), x.shape)


def layer_norm(
    x: Float[Array, "*rows D"], scale: Float[Array, "D"], epsilon: float
) -> Float[Array, "*rows D"]:
    """`x` minus its mean, at deviation `scale`. Ba et al. 2016, arXiv:1607.06450."""
    wide = upcast(x)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    return rms_norm(wide - mean, scale, epsilon).astype(x.dtype)


class Norm(nnx.Module):
    """Base class of norms of vectors of `size`; `letter` names their dimension.

    `initial` has the learned vectors by name, and the value that they start with.
    """

    initial: ClassVar[Mapping[str, float]] = {"scale": 1.0}
    scale: nnx.Param
    offset: nnx.Param

    def __init__(
        self,
        size: int,
        init: Init,
        letter: str = "D",
        *,
        epsilon: NonNegative[float] = 1e-6,
    ):
        for name, value in self.initial.items():
            setattr(self, name, init.full(letter, {letter: size}, value))
        self.epsilon = epsilon

    @abstractmethod
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Normalizes `x`."""


@configurable
class RMSNorm(Norm):
    """Root-mean-square norm with a learned gain."""

    def __call__(self, x):
        return rms_norm(x, self.scale[...], self.epsilon)


@configurable
class LayerNorm(Norm):
    """Layer norm with a learned gain and no offset."""

    def __init__(self, *args: Any, epsilon: NonNegative[float] = 1e-5):
        super().__init__(*args, epsilon=epsilon)

    def __call__(self, x):
        return layer_norm(x, self.scale[...], self.epsilon)


@configurable
class AffineLayerNorm(LayerNorm):
    """Layer norm with a learned gain and offset. Ba et al. 2016, arXiv:1607.06450."""

    initial = {"scale": 1.0, "offset": 0.0}

    def __call__(self, x):
        y = super().__call__(x)
        return y + jnp.broadcast_to(self.offset[...].astype(y.dtype), y.shape)


@configurable
class OffsetRMSNorm(Norm):
    """RMS norm with gain 1 + offset, so that weight decay pulls the gain to 1.

    The product is rounded once. Gemma Team 2024, arXiv:2403.08295, and its released
    code.
    """

    initial = {"offset": 0.0}

    def __call__(self, x):
        gain = 1.0 + upcast(self.offset[...])
        return rms_norm(upcast(x), gain, self.epsilon).astype(x.dtype)
