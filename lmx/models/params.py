"""The parameters of a model as a table: names, sizes, and how many there are."""

import math
from typing import NamedTuple

import jax
from flax import nnx

from lmx.core.sharding import is_variable


class Parameter(NamedTuple):
    """One parameter, stacked over the layers that have it."""

    name: str
    sizes: dict[str, int]  # by logical axis

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.sizes.values())


def list_parameters(model: nnx.Module) -> list[Parameter]:
    """The parameters of a model, which may be abstract, in the order of their names."""
    _, params = nnx.split(model)
    leaves, _ = jax.tree.flatten_with_path(params, is_leaf=is_variable)
    return [
        Parameter(
            jax.tree_util.keystr(path, simple=True, separator="."),
            dict(zip(leaf.axes, leaf.shape, strict=True)),
        )
        for path, leaf in leaves
    ]


def count_parameters(model: nnx.Module) -> int:
    """How many parameters a model has, tied ones counted once."""
    return sum(row.count for row in list_parameters(model))


def format_parameters(model: nnx.Module) -> str:
    """A line for each parameter, and one for them all."""
    all_rows = list_parameters(model)
    name = max(len(row.name) for row in all_rows)
    count = max(len(f"{count_parameters(model):,}"), 1)
    lines = [
        f"{row.name:{name}}  {row.count:{count},}  "
        + " ".join(f"{axis}={size}" for axis, size in row.sizes.items())
        for row in all_rows
    ]
    return "\n".join(
        [*lines, f"{'parameters':{name}}  {count_parameters(model):{count},}"]
    )
