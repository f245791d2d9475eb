"""Replaces weights of a built model by name, as by LoRA or int8 codes."""

import math
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from lmx.config.registry import check_argument, suggest
from lmx.core import dims
from lmx.core.sharding import is_variable
from lmx.layers.linear import (
    AnyWeight,
    Weight,
    array_axes,
    contract,
    contract_grouped,
    lookup,
)

M = TypeVar("M", bound=nnx.Module)
RANK = dims.LOGICAL["Z"]


def replace_weights(
    model: M, pattern: str, replace: Callable[[str, AnyWeight], AnyWeight]
) -> M:
    """A copy of `model` with `replace(name, weight)` for matrices of matching names.

    Names are those of `list_parameters`, and the pattern one of `fnmatch`, as in
    `*.attention.*.w`. A weight is stacked over its layers. What is not replaced is
    shared with `model`. Raises ValueError where no matrix matches.
    """
    leaves, tree = jax.tree.flatten_with_path(
        model, is_leaf=lambda leaf: is_variable(leaf) or isinstance(leaf, Weight)
    )
    weights = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in leaves
    }
    matching = [n for n, w in weights.items() if w.in_dims and fnmatchcase(n, pattern)]
    check_argument(
        matching,
        f"no matrix of the model matches {pattern!r}{suggest(pattern, weights)}",
    )
    new = (replace(n, w) if n in matching else w for n, w in weights.items())
    return jax.tree.unflatten(tree, new)


class LoRA(Weight):
    """The weight `base`, plus `scale` times the product of `down` and `up`.

    There is a pair of matrices for each layer, and for each expert. `down` is normal of
    variance 1 / fan-in and `up` is zero, so that the sum equals `base` at first. Freeze
    `base` to train the pair alone.
    """

    def __init__(
        self, base: AnyWeight, rank: int, key: Key[Array, ""], scale: float = 1.0
    ):
        super().__init__(base)
        check_argument(rank >= 1, f"the rank of LoRA is {rank}: it must be 1 or more.")
        sizes = dict(zip(base.axes, base.shape, strict=True)) | {RANK: rank}
        each = [a for a in base.axes if a not in (*base.in_dims, *base.out_dims)]
        down_axes, up_axes = (*each, *base.in_dims, RANK), (*each, RANK, *base.out_dims)
        std = math.prod(sizes[axis] for axis in base.in_dims) ** -0.5
        self.base, self.scale = base, scale
        self.down = nnx.Param(
            jax.random.normal(key, [sizes[axis] for axis in down_axes]) * std,
            axes=down_axes,
            in_dims=base.in_dims,
            out_dims=(RANK,),
            layers=self.layers,
        )
        self.up = nnx.Param(
            jnp.zeros([sizes[axis] for axis in up_axes]),
            axes=up_axes,
            in_dims=(RANK,),
            out_dims=base.out_dims,
            layers=self.layers,
        )

    def __getitem__(self, index):
        base = self.base[...]
        w_dims = dims.letters(self.axes[-base.ndim :])
        terms = f"{self._letters(w_dims)}->{w_dims}"
        product = jnp.einsum(terms, self.down[...], self.up[...])
        return (base + self.scale * product)[index]

    def contract(self, equation, x):
        x_dims, w_dims, y_dims = re.split(",|->", equation)
        terms = f"{x_dims},{self._letters(w_dims)}->{y_dims}"  # the cheapest order
        down, up = (param[...].astype(x.dtype) for param in (self.down, self.up))
        product = jnp.einsum(terms, x, down, up)
        return contract(equation, x, self.base) + self.scale * product

    def contract_grouped(self, matmul, x):
        low = contract_grouped(matmul, x, self.down)
        product = contract_grouped(matmul, low, self.up)
        return contract_grouped(matmul, x, self.base) + self.scale * product

    def lookup(self, index):
        product = jnp.tensordot(self.down[...][index], self.up[...], 1)
        return lookup(self.base, index) + self.scale * product

    def _letters(self, w_dims: str) -> str:
        """Those of both matrices, as in "DZ,ZNH" where the weight has "DNH"."""
        axes = (*self.axes[-len(w_dims) :], RANK)
        letters = dict(zip(axes, w_dims + "Z", strict=True))
        return ",".join(
            "".join(letters[axis] for axis in array_axes(param))
            for param in (self.down, self.up)
        )


class Int8(Weight):
    """int8 codes, with one scale (absmax / 127) for what is summed into each output."""

    def __init__(self, weight: AnyWeight):
        super().__init__(weight)
        over = [i for i, axis in enumerate(self.axes) if axis in self.in_dims]
        axes = tuple(axis for axis in self.axes if axis not in self.in_dims)
        scale = jnp.abs(weight[...]).max(over, keepdims=True, initial=1e-9) / 127
        self.codes = nnx.Param(
            jnp.round(weight[...] / scale).astype("int8"),
            axes=self.axes,
            in_dims=self.in_dims,
            out_dims=self.out_dims,
            layers=self.layers,
        )
        self.scale = nnx.Param(
            scale.squeeze(over), axes=axes, in_dims=(), out_dims=(), layers=self.layers
        )

    def __getitem__(self, index):
        axes = array_axes(self.codes)
        over = [i for i, axis in enumerate(axes) if axis in self.in_dims]
        return (self.codes[...] * jnp.expand_dims(self.scale[...], over))[index]
