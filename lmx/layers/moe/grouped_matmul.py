"""Which program multiplies rows with the matrices of their groups: never a fallback.

All are the reference, a loop over groups, but for rounding. What one cannot do it
refuses by name.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float, Int

from lmx.config.registry import ConfigError, configurable
from lmx.core import partitioning


class GroupedMatmul(ABC):
    """Anything that multiplies rows, sorted by group, with the matrix of their group.

    Attributes:
        typed: whether JAX can tell over which axes its result differs.
    """

    check_vma: ClassVar[bool] = True

    def check(self, dtype: jnp.dtype) -> None:
        """Refuses numbers, or devices, that it cannot serve."""
        del dtype

    @abstractmethod
    def __call__(
        self,
        x: Float[Array, "M D"],
        w: Float[Array, "E D F"],
        sizes: Int[Array, "E"],
    ) -> Float[Array, "M F"]:
        """The first `sizes[0]` rows times `w[0]`, and so on; 0 for rows of no group."""


@configurable
@dataclass(frozen=True)
class RaggedDot(GroupedMatmul):
    """`jax.lax.ragged_dot` as XLA compiles it, everywhere and for numbers of any type.

    A grouped kernel where XLA has one for the device. On CPU it has none: every matrix
    meets every row, and what is not its own is zero.
    """

    def __call__(self, x, w, sizes):
        return ragged_dot(*_match_varying(x, w), sizes)


@jax.custom_vjp
def ragged_dot(
    x: Float[Array, "M D"], w: Float[Array, "E D F"], sizes: Int[Array, "E"]
) -> Float[Array, "M F"]:
    """`jax.lax.ragged_dot`, which JAX cannot derive under `vmap`: one after the other.

    Rows and matrices must differ over the same devices.
    """
    return _ragged_dot(x, w, sizes)


_ragged_dot = sequential_vmap(jax.lax.ragged_dot)


@sequential_vmap
def _ragged_dot_grads(
    x: Array, w: Array, sizes: Array, grad: Array
) -> tuple[Array, Array]:
    """The gradients with respect to rows and matrices."""
    product = partial(jax.lax.ragged_dot, group_sizes=sizes)
    return jax.vjp(product, *_match_varying(x, w))[1](grad)


ragged_dot.defvjp(
    lambda x, w, sizes: (_ragged_dot(x, w, sizes), (x, w, sizes)),
    lambda kept, grad: (*_ragged_dot_grads(*kept, grad), None),
)


def _match_varying(x: Array, w: Array) -> tuple[Array, Array]:
    """Both as arrays that differ over all devices over which either does."""
    over = jax.typeof(x).mat.varying | jax.typeof(w).mat.varying

    def cast(array: Array) -> Array:
        more = tuple(over - jax.typeof(array).mat.varying)
        return jax.lax.pcast(array, more, to="varying") if more else array

    return cast(x), cast(w)


@configurable
@dataclass(frozen=True, kw_only=True)
class Megablox(GroupedMatmul):
    """The grouped product that comes with JAX for TPUs, in bfloat16 or float32.

    Gale et al. 2022, arXiv:2211.15841, written in Pallas.

    Attributes:
        tile: rows and columns of a block that is multiplied at a time.
    """

    tile: int = 128

    check_vma: ClassVar[bool] = False

    def __post_init__(self):
        if self.tile < 128 or self.tile % 128:
            raise ConfigError(
                f"Megablox.tile is {self.tile}: it must be a multiple of 128."
            )

    def check(self, dtype: jnp.dtype) -> None:
        if (platform := partitioning.platform()) != "tpu":
            raise ConfigError(
                f"the product Megablox runs on TPUs and this program is for {platform}:"
                " choose DroplessDispatch.grouped_matmul=@RaggedDot()."
            )
        if dtype not in (jnp.bfloat16, jnp.float32):
            raise ConfigError(
                f"the product Megablox computes in bfloat16 or float32, not {dtype}:"
                " set Precision.compute='bfloat16', or DroplessDispatch.grouped_matmul=@RaggedDot()."
            )

    def __call__(self, x, w, sizes):
        return megablox_matmul(x, w, sizes, self.tile)


def megablox_matmul(
    x: Float[Array, "M D"],
    w: Float[Array, "E D F"],
    sizes: Int[Array, "E"],
    tile: int,
    *,
    interpret: bool = False,
) -> Float[Array, "M F"]:
    """The grouped product by Pallas, where `interpret` runs it as plain JAX, anywhere.

    The kernel wants whole blocks of rows, and leaves behind them what memory held.
    """
    from jax.experimental.pallas.ops.tpu.megablox import ops

    M = len(x)
    x = jnp.pad(x, ((0, -M % tile), (0, 0)))
    own_M1 = jnp.arange(len(x))[:, None] < sizes.sum()
    y = ops.gmm(
        jnp.where(own_M1, x, 0), w, sizes, x.dtype, (tile,) * 3, None, None, False,
        interpret,
    )  # fmt: skip
    return jnp.where(own_M1, y, 0)[:M]
