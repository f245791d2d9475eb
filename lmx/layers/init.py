"""How parameters are born: their distribution, their dtype and the names of their axes.

A layer says what a weight is for; a scheme, chosen by the experiment, says how large.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from lmx.config.registry import configurable
from lmx.core import dims

# What a weight is for: tokens in, between layers, into the residual stream, logits out.
Role = Literal["embed", "hidden", "residual", "head"]

# The standard deviation of a unit normal that is cut at two of them.
TRUNCATED_STD = 0.87962566103423978


@configurable
@dataclass(frozen=True, kw_only=True)
class FanIn:
    """Truncated normal of variance 1 / fan-in; embeddings of deviation `embed`.

    LeCun et al. 1998, "Efficient BackProp", section 4.6.
    """

    embed: float = 1.0

    def std_for(self, role: Role, fan_in: int, depth: int) -> float:
        """The standard deviation of a weight; `depth` counts residual blocks."""
        del depth
        return self.embed if role == "embed" else fan_in**-0.5

    def sample(
        self, key: Key[Array, ""], shape: Sequence[int], std: float
    ) -> Float[Array, "..."]:
        """A sample: normal, cut at two deviations and widened back to `deviation`."""
        return jax.random.truncated_normal(key, -2.0, 2.0, shape) * (
            std / TRUNCATED_STD
        )


@configurable
@dataclass(frozen=True, kw_only=True)
class DepthScaled(FanIn):
    """`FanIn`, with what enters the residual stream divided by sqrt(2 * depth).

    The stream then keeps its variance over depth. Radford et al. 2019, section 2.3.
    """

    def std_for(self, role: Role, fan_in: int, depth: int) -> float:
        scale = (2 * depth) ** -0.5 if role == "residual" else 1.0
        return super().std_for(role, fan_in, depth) * scale


@configurable
@dataclass(frozen=True, kw_only=True)
class ZeroOut(FanIn):
    """`FanIn`, with what enters the residual stream, and the head, zero.

    Every block starts as none, every token as likely as any other. Zhang et al. 2019,
    arXiv:1901.09321 (Fixup), section 3.
    """

    def std_for(self, role: Role, fan_in: int, depth: int) -> float:
        begins = role in ("embed", "hidden")
        return super().std_for(role, fan_in, depth) if begins else 0.0


@configurable
@dataclass(frozen=True, kw_only=True)
class Normal:
    """Normal of one deviation, whatever the weight is for.

    Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training",
    section 4.1.
    """

    std: float = 0.02

    def std_for(self, role: Role, fan_in: int, depth: int) -> float:
        """The standard deviation of a weight."""
        del role, fan_in, depth
        return self.std

    def sample(
        self, key: Key[Array, ""], shape: Sequence[int], std: float
    ) -> Float[Array, "..."]:
        """A sample of that deviation."""
        return jax.random.normal(key, shape) * std


@configurable
@dataclass(frozen=True, kw_only=True)
class GPT2Init(Normal):
    """`Normal`, with what enters the residual stream divided by sqrt(2 * depth).

    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section
    2.3, and its released code.
    """

    def std_for(self, role: Role, fan_in: int, depth: int) -> float:
        scale = (2 * depth) ** -0.5 if role == "residual" else 1.0
        return super().std_for(role, fan_in, depth) * scale


Initializer = FanIn | Normal


@dataclass(frozen=True)
class Init:
    """What a constructor makes its parameters with."""

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
        """A random weight, whose axes carry the names of its letters.

        `into` are the letters it sums over, `out_dims` those it makes (the others, if not
        said); any further letter indexes independent matrices, one per expert.
        """
        out_dims = out_dims or "".join(d for d in letters if d not in in_dims)
        fan_in = 1
        for letter in in_dims:
            fan_in *= sizes[letter]
        shape = tuple(sizes[d] for d in letters)
        if min(shape) < 1:
            named = dict(zip(dims.logical(letters), shape, strict=True))
            raise ValueError(f"a weight of {named} has nothing in it: 1 is the least.")
        std = self.initializer.std_for(role, fan_in, self.depth)
        value = self.initializer.sample(self.rngs.params(), shape, std)
        return nnx.Param(
            value.astype(self.dtype),
            axes=dims.logical(letters),
            into=dims.logical(in_dims),
            out_of=dims.logical(out_dims),
        )

    def full(self, letters: str, sizes: Mapping[str, int], value: float) -> nnx.Param:
        """One value everywhere: gains or offsets, which sum over nothing."""
        array = jnp.full([sizes[d] for d in letters], value, self.dtype)
        return nnx.Param(array, axes=dims.logical(letters), into=(), out_of=())

    def upcast(self) -> "Init":
        """The same, making parameters in at least float32."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return replace(self, dtype=str(wide))

    def with_key(self, key: Key[Array, ""]) -> "Init":
        """The same, drawing from `key`."""
        return replace(self, rngs=nnx.Rngs(params=key))
