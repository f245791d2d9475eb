"""Parameter initialization: distribution, dtype and logical axis names."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from lmx.config.registry import NonNegative, configurable
from lmx.core import dims

# Token embedding, between layers, into the residual stream, or output head.
Role = Literal["embed", "hidden", "residual", "head"]

# Standard deviation of a unit normal truncated at two standard deviations.
TRUNCATED_STD = 0.87962566103423978


@configurable
@dataclass(frozen=True, kw_only=True)
class FanIn:
    """Truncated normal of variance 1 / fan-in; `embed` is the std of embeddings.

    LeCun et al. 1998, "Efficient BackProp", section 4.6.
    """

    embed: NonNegative[float] = 1.0

    def std_for(self, role: Role, fan_in: int, depth: int) -> float:
        """The standard deviation of a weight; `depth` counts residual blocks."""
        return self.embed if role == "embed" else fan_in**-0.5

    def sample(
        self, key: Key[Array, ""], shape: Sequence[int], std: float
    ) -> Float[Array, "..."]:
        """Normal truncated at two standard deviations, rescaled to `std`."""
        unit = jax.random.truncated_normal(key, -2.0, 2.0, shape)
        return unit * (std / TRUNCATED_STD)


@configurable
@dataclass(frozen=True, kw_only=True)
class DepthScaled(FanIn):
    """`FanIn`, divided by sqrt(2 * depth) for weights into the residual stream.

    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section
    2.3.
    """

    def std_for(self, role, fan_in, depth):
        return super().std_for(role, fan_in, depth) * residual_scale(role, depth)


@configurable
@dataclass(frozen=True, kw_only=True)
class ZeroOut(FanIn):
    """`FanIn`, with zeros for weights into the residual stream and for the head.

    Zhang et al. 2019, arXiv:1901.09321 (Fixup), section 3.
    """

    def std_for(self, role, fan_in, depth):
        if role in ("residual", "head"):
            return 0.0
        return super().std_for(role, fan_in, depth)


@configurable
@dataclass(frozen=True, kw_only=True)
class Normal:
    """One standard deviation for every role. Radford et al. 2018 (GPT), section 4.1."""

    std: NonNegative[float] = 0.02

    def std_for(self, role: Role, fan_in: int, depth: int) -> float:
        """The standard deviation of a weight."""
        return self.std

    def sample(
        self, key: Key[Array, ""], shape: Sequence[int], std: float
    ) -> Float[Array, "..."]:
        """Normal of standard deviation `std`."""
        return jax.random.normal(key, shape) * std


@configurable
@dataclass(frozen=True, kw_only=True)
class GPT2Init(Normal):
    """`Normal`, divided by sqrt(2 * depth) for weights into the residual stream."""

    def std_for(self, role, fan_in, depth):
        return super().std_for(role, fan_in, depth) * residual_scale(role, depth)


Initializer = FanIn | Normal


def residual_scale(role: Role, depth: int) -> float:
    """Factor 1 / sqrt(2 * depth) of weights into the residual stream, else 1."""
    return (2 * depth) ** -0.5 if role == "residual" else 1.0


@dataclass(frozen=True)
class Init:
    """Creates the parameters of a module."""

    rngs: nnx.Rngs
    initializer: Initializer
    depth: int  # residual blocks
    dtype: str = "float32"

    def weight(
        self,
        letters: str,
        sizes: Mapping[str, int],
        *,
        in_dims: str,
        role: Role = "hidden",
        out_dims: str = "",
    ) -> nnx.Param:
        """A random weight with one dimension per letter of `lmx/core/dims.py`.

        It contracts `in_dims` and produces `out_dims` (default: all others). Remaining
        letters index independent matrices, such as experts.
        """
        out_dims = out_dims or "".join(d for d in letters if d not in in_dims)
        shape = tuple(sizes[d] for d in letters)
        if min(shape) < 1:
            named = dict(zip(dims.logical(letters), shape, strict=True))
            raise ValueError(
                f"weight of {named} is empty: every size must be 1 or more."
            )
        fan_in = math.prod(sizes[d] for d in in_dims)
        std = self.initializer.std_for(role, fan_in, self.depth)
        value = self.initializer.sample(self.rngs.params(), shape, std)
        return nnx.Param(
            value.astype(self.dtype),
            axes=dims.logical(letters),
            in_dims=dims.logical(in_dims),
            out_dims=dims.logical(out_dims),
            role=role,
        )

    def full(self, letters: str, sizes: Mapping[str, int], value: float) -> nnx.Param:
        """A constant parameter, such as a gain or a bias, which contracts nothing."""
        array = jnp.full([sizes[d] for d in letters], value, self.dtype)
        return nnx.Param(array, axes=dims.logical(letters), in_dims=(), out_dims=())

    def upcast(self) -> "Init":
        """A copy that creates parameters in at least float32."""
        return replace(self, dtype=str(jnp.promote_types(self.dtype, jnp.float32)))

    def with_key(self, key: Key[Array, ""]) -> "Init":
        """A copy that samples from `key`."""
        return replace(self, rngs=nnx.Rngs(params=key))
