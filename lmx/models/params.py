"""Parameter table of a model: names, sizes by axis, and counts."""

import math
from typing import NamedTuple

import jax
from flax import nnx

from lmx.core.sharding import is_variable


class Parameter(NamedTuple):
    """One parameter, stacked over its layers."""

    name: str
    sizes: dict[str, int]  # by logical axis

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes.values())


def list_parameters(model: nnx.Module) -> list[Parameter]:
    """The parameters of a model, which may be abstract, sorted by name."""
    _, params = nnx.split(model)
    leaves, _ = jax.tree.flatten_with_path(params, is_leaf=is_variable)
    return [
        Parameter(
            jax.tree_util.keystr(path, simple=True, separator="."),
            dict(zip(leaf.axes, leaf.shape, strict=True)),
        )
        for path, leaf in leaves
    ]


def format_parameters(model: nnx.Module) -> str:
    """One line per parameter, and one for the total."""
    parameters = list_parameters(model)
    total = f"{sum(p.count for p in parameters):,}"
    name = max(len(p.name) for p in parameters)
    lines = [
        f"{p.name:{name}}  {p.count:{len(total)},}  "
        + " ".join(f"{axis}={size}" for axis, size in p.sizes.items())
        for p in parameters
    ]
    return "\n".join([*lines, f"{'parameters':{name}}  {total}"])
