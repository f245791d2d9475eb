"""Grouped matmul: rows sorted by expert times the matrix of each expert."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float, Int

from lmx.config.registry import configurable, multiple_of
from lmx.core import partitioning


class GroupedMatmul(ABC):
    """Base class of grouped matrix multiplications, which equal a loop over experts.

    Attributes:
        platforms, dtypes: where it runs, and what it computes in; empty: any.
        check_vma: whether JAX can infer over which device axes the result varies.
    """

    platforms: ClassVar[tuple[str, ...]] = ()
    dtypes: ClassVar[tuple[str, ...]] = ()
    check_vma: ClassVar[bool] = True

    def check(self, dtype: jnp.dtype) -> None:
        """Raises ConfigError for an unsupported dtype or platform."""
        remedy = "set DroplessDispatch.grouped_matmul=@RaggedDot()."
        partitioning.check_kernel(self, dtype, remedy)

    @abstractmethod
    def __call__(
        self, x: Float[Array, "M D"], w: Float[Array, "E D F"], sizes: Int[Array, "E"]
    ) -> Float[Array, "M F"]:
        """The first `sizes[0]` rows times `w[0]`, and so on; 0 for rows of no group."""


@configurable
@dataclass(frozen=True)
class RaggedDot(GroupedMatmul):
    """`jax.lax.ragged_dot` as XLA compiles it, on any platform and for any dtype."""

    def __call__(self, x, w, sizes):
        return ragged_dot(*_match_varying(x, w), sizes)


@jax.custom_vjp
def ragged_dot(
    x: Float[Array, "M D"], w: Float[Array, "E D F"], sizes: Int[Array, "E"]
) -> Float[Array, "M F"]:
    """`jax.lax.ragged_dot`, sequential under `vmap`, where JAX lacks its gradient."""
    return _ragged_dot(x, w, sizes)


_ragged_dot = sequential_vmap(jax.lax.ragged_dot)


@sequential_vmap
def _ragged_dot_grads(
    x: Array, w: Array, sizes: Array, grad: Array
) -> tuple[Array, Array]:
    """The gradients with respect to rows and matrices."""
    matmul = partial(jax.lax.ragged_dot, group_sizes=sizes)
    return jax.vjp(matmul, *_match_varying(x, w))[1](grad)


ragged_dot.defvjp(
    lambda x, w, sizes: (_ragged_dot(x, w, sizes), (x, w, sizes)),
    lambda residuals, grad: (*_ragged_dot_grads(*residuals, grad), None),
)


def _match_varying(x: Array, w: Array) -> tuple[Array, Array]:
    """Casts both to vary over all device axes over which either varies."""
    axes = jax.typeof(x).mat.varying | jax.typeof(w).mat.varying

    def cast(array: Array) -> Array:
        missing = tuple(axes - jax.typeof(array).mat.varying)
        return jax.lax.pcast(array, missing, to="varying") if missing else array

    return cast(x), cast(w)


@configurable
@dataclass(frozen=True, kw_only=True)
class Megablox(GroupedMatmul):
    """JAX's Pallas grouped matmul for TPUs, in blocks of `tile` rows and columns.

    Gale et al. 2022, arXiv:2211.15841.
    """

    tile: Annotated[int, multiple_of(128)] = 128
    platforms, dtypes, check_vma = ("tpu",), ("bfloat16", "float32"), False

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
    """The grouped matmul by Pallas; with `interpret` it runs on any platform."""
    from jax.experimental.pallas.ops.tpu.megablox import ops

    M = len(x)
    x = jnp.pad(x, ((0, -M % tile), (0, 0)))
    valid_M1 = jnp.arange(len(x))[:, None] < sizes.sum()
    y = ops.gmm(
        jnp.where(valid_M1, x, 0), w, sizes, x.dtype, (tile,) * 3, None, None, False,
        interpret,
    )  # fmt: skip
    return jnp.where(valid_M1, y, 0)[:M]
