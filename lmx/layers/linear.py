"""The reader of learned weights, learned einsums, and the output heads.

Every learned matrix is multiplied here, so that a weight may be stored in another way
than as an array: `models/adapters/` replaces weights of a built model by a `Weight`.
"""

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lmx.config.registry import configurable
from lmx.core.sharding import is_variable
from lmx.layers.init import Init, Role


class Weight(nnx.Module):
    """Base class of weights that are not stored as one array, but read like one.

    Its components are parameters with logical axes, so that it is stacked, scanned and
    sharded like the parameter that it replaces, and has the axes of. In a scan over
    layers, arrays lack the first of their axes.
    """

    def __init__(self, like: "AnyWeight"):
        self.axes: tuple[str, ...] = like.axes
        self.in_dims: tuple[str, ...] = like.in_dims
        self.out_dims: tuple[str, ...] = like.out_dims
        self.layers: tuple[int, ...] = getattr(like, "layers", ())

    @abstractmethod
    def __getitem__(self, index: Any) -> Float[Array, "..."]:
        """The weight as one array, as of a parameter."""

    def contract(self, equation: str, x: Array) -> Array:
        """See the function."""
        return contract(equation, x, self[...])

    def contract_grouped(self, matmul: Callable[..., Array], x: Array) -> Array:
        """See the function."""
        return contract_grouped(matmul, x, self[...])

    def lookup(self, index: int | Int[Array, "*rows"]) -> Array:
        """See the function."""
        return lookup(self[...], index)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight as one array."""
        return jax.eval_shape(lambda weight: weight[...], self).shape


AnyWeight = nnx.Param | Weight


def contract(equation: str, x: Array, weight: AnyWeight | Array) -> Array:
    """`einsum(equation, x, weight)` in the dtype of `x`."""
    if isinstance(weight, Weight):
        return weight.contract(equation, x)
    return jnp.einsum(equation, x, weight[...].astype(x.dtype))


def contract_grouped(
    matmul: Callable[..., Array], x: Array, weight: AnyWeight | Array
) -> Array:
    """`matmul(x, weight)`, the product of rows with the matrices of their experts."""
    if isinstance(weight, Weight):
        return weight.contract_grouped(matmul, x)
    return matmul(x, weight[...].astype(x.dtype))


def lookup(
    weight: AnyWeight | Array, index: int | Int[Array, "*rows"]
) -> Float[Array, "*rows D"]:
    """The rows of a table at these indices."""
    if isinstance(weight, Weight):
        return weight.lookup(index)
    return weight[...][index]


def scale_by_row(
    x: Float[Array, "*rows D"], weight: AnyWeight | Array, row: int
) -> Float[Array, "*rows D"]:
    """`x` times a row of a table, channel by channel."""
    return x * jnp.broadcast_to(lookup(weight, row).astype(x.dtype), x.shape)


def slice_weight(
    weight: AnyWeight, axis: str, start: int, stop: int | None
) -> AnyWeight:
    """The part of a weight between two positions of a logical axis."""

    def slice_part(param: nnx.Variable) -> nnx.Variable:
        axes = array_axes(param)
        if axis not in axes:
            return param
        at = (slice(None),) * axes.index(axis) + (slice(start, stop),)
        return param.replace(param[at])

    return jax.tree.map(slice_part, weight, is_leaf=is_variable)


def cast_weight(weight: AnyWeight, dtype: jnp.dtype) -> AnyWeight:
    """The weight with its matrices in `dtype`; codes and scales of others stay."""

    def cast(param: nnx.Variable) -> nnx.Variable:
        is_matrix = param.in_dims and jnp.issubdtype(param.dtype, jnp.floating)
        casts = is_matrix or param is weight
        return param.replace(param[...].astype(dtype)) if casts else param

    return jax.tree.map(cast, weight, is_leaf=is_variable)


def array_axes(param: nnx.Variable) -> tuple[str, ...]:
    """The logical axes of the array, which in a scan over layers lacks the first."""
    return param.axes[len(param.axes) - param.ndim :]


@configurable
class Einsum(nnx.Module):
    """`y = einsum(equation, x, w)` with a learned `w`, as in `"BTD,DNH->BTNH"`."""

    use_bias: ClassVar[bool] = False

    def __init__(
        self, equation: str, sizes: Mapping[str, int], init: Init, role: Role = "hidden"
    ):
        x_dims, w_dims, y_dims = re.split(",|->", equation)
        in_dims = "".join(d for d in w_dims if d not in y_dims)
        out_dims = "".join(d for d in w_dims if d not in x_dims)
        self.equation = equation
        self.w: AnyWeight = init.weight(
            w_dims, sizes, in_dims=in_dims, out_dims=out_dims, role=role
        )
        if self.use_bias:
            bias_dims = "".join(d for d in y_dims if d in w_dims)
            self.b = init.full(bias_dims, sizes, 0.0)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        y = contract(self.equation, x, self.w)
        if self.use_bias:
            y += jnp.broadcast_to(self.b[...].astype(y.dtype), y.shape)
        return y


@configurable
class EinsumBias(Einsum):
    """`Einsum` with a bias for each output channel, initially zero."""

    use_bias = True


@configurable
class LMHead(nnx.Module):
    """Output projection with its own weight."""

    def __init__(self, width: int, vocab: int, init: Init):
        self.out = Einsum("BTD,DV->BTV", dict(D=width, V=vocab), init, "head")

    def __call__(
        self, x: Float[Array, "B T D"], embedding: AnyWeight | Float[Array, "V D"]
    ) -> Float[Array, "B T V"]:
        """Logits; `embedding` is the weight of the token embedding."""
        return self.out(x)


@configurable
class TiedLMHead(LMHead):
    """The transposed token embedding. Press and Wolf 2016, arXiv:1608.05859.

    Initial logits have sqrt(width) times the standard deviation of the embedding:
    choose an initializer with a small one (`GPT2Init`, or `FanIn.embed`).
    """

    def __init__(self, width: int, vocab: int, init: Init):
        pass

    def __call__(self, x, embedding):
        return contract("BTD,VD->BTV", x, embedding)
