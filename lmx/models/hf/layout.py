"""Which tensor of a file is which parameter, and how its dimensions are laid out."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lmx.config.registry import ConfigError
from lmx.models.decoder import Decoder

Shape = tuple[int, ...]
LAYER, EXPERT = "{layer}", "{expert}"


class TensorMap(NamedTuple):
    """One row of a family's table.

    Attributes:
        file: the tensor's name, with `{layer}` and `{expert}` where it has one of each.
        into: the parameter, in the block of that layer or in the decoder; or those that
            share the tensor, in order.
        layout: the dimensions of the tensor, then those of the parameter, in letters of
            `lmx/core/dims.py`, without layers, and without experts that have a tensor
            each: "(N H) D -> D N H". Parameters that share a tensor stand along a
            digit, "D (3 N H) -> 3 D N H", or one after the other along a sum,
            "(N H+F) R -> R N H, R N F".
    """

    hf: str
    param: str | tuple[str, ...]
    layout: str


@dataclass(frozen=True)
class TensorSlice:
    """What of a tensor belongs to one parameter.

    Attributes:
        lead: where in the parameter: its layer, and its expert if each has a tensor.
        groups: the tensor's dimensions, each the names it is made of.
        dims: the parameter's dimensions after `lead`.
        number: of this parameter among those that share the tensor.
    """

    tensor: str
    path: str
    index: Shape
    groups: Sequence[Sequence[str]]
    dims: Sequence[str]
    sizes: Mapping[str, int]
    position: int

    @property
    def shape(self) -> Shape:
        """The tensor's, in the file."""
        return tuple(math.prod(map(self._size, group)) for group in self.groups)

    def view(self, tensor: np.ndarray) -> np.ndarray:
        """What of the tensor is the parameter's, in its order, and not copied.

        Serves reading and writing: what is put into the view is put into `tensor`.
        """
        words = [word for group in self.groups for word in group]
        split = tensor.reshape([self._size(word) for word in words])
        at = tuple(self._index(word) for word in words)
        names = [self._name(word) for word in words if not word.isdigit()]
        return split[at].transpose([names.index(name) for name in self.dims])

    def _size(self, word: str) -> int:
        return sum(self.sizes[name] for name in word.split("+"))

    def _name(self, word: str) -> str:
        return next(name for name in word.split("+") if name in self.dims)

    def _index(self, word: str) -> int | slice:
        """This parameter's share of one dimension."""
        if word.isdigit():
            return self.position
        name, start = self._name(word), 0
        for other in word.split("+"):
            if other == name:
                break
            start += self.sizes[other]
        return slice(start, start + self.sizes[name])


def find_layer_paths(model: Decoder) -> list[tuple[str, int]]:
    """Of each layer, the path of its stacked blocks and its index among them."""
    found = {}
    for number, cycle in enumerate(model.stack.cycles):
        for (turn, kind), layer in np.ndenumerate(cycle.group.layers):
            found[layer] = (f"stack.cycles.{number}.blocks.{kind}", turn)
    return [found[layer] for layer in sorted(found)]


def map_tensors(
    rows: Iterable[TensorMap], shapes: Mapping[str, Shape], model: Decoder
) -> list[TensorSlice]:
    """Where every parameter comes from, in the order of layers and of the table.

    A row whose parameters a layer does not have says nothing about that layer.
    """
    rows = list(rows)
    single = [row for row in rows if LAYER not in row.hf]
    layered = [row for row in rows if LAYER in row.hf]
    found = [part for row in single for part in expand_map(row, "", (), shapes)]
    for layer, (prefix, index) in enumerate(find_layer_paths(model)):
        for row in layered:
            here = row._replace(hf=row.hf.replace(LAYER, str(layer)))
            found += expand_map(here, f"{prefix}.", (index,), shapes)
    return found


def expand_map(
    row: TensorMap, prefix: str, lead: Shape, shapes: Mapping[str, Shape]
) -> Iterator[TensorSlice]:
    """What a row says of one layer."""
    into = (row.param,) if isinstance(row.param, str) else row.param
    paths = [prefix + path for path in into]
    if not all(path in shapes for path in paths):
        return
    groups, dims = _parse_layout(row.layout, len(paths))
    depth = len(lead) + (EXPERT in row.hf)
    sizes = {name: int(name) for group in groups for name in group if name.isdigit()}
    for path, names in zip(paths, dims, strict=True):
        if len(shapes[path]) != depth + len(names):
            raise ConfigError(
                f"{path} is {shapes[path]}, and {row.layout!r} of {row.hf} is about"
                f" {len(names)} dimensions after the first {depth}."
            )
        sizes |= dict(zip(names, shapes[path][depth:], strict=True))
    experts = range(shapes[paths[0]][len(lead)]) if EXPERT in row.hf else [None]
    for expert in experts:
        name = row.hf.replace(EXPERT, str(expert))
        at = lead if expert is None else (*lead, expert)
        for number, path in enumerate(paths):
            yield TensorSlice(name, path, at, groups, dims[number], sizes, number)


def _parse_layout(layout: str, count: int) -> tuple[list[list[str]], list[list[str]]]:
    """The names of each dimension of the tensor, and those of each parameter."""
    left, right = layout.split("->")
    said = [words.split() for words in right.split(",")]
    dims = [[name for name in names if not name.isdigit()] for names in said]
    groups = [
        inside.split()
        for n, outside in enumerate(left.replace(")", "(").split("("))
        for inside in ([outside] if n % 2 else outside.split())
    ]
    return groups, dims if len(dims) == count else dims * count


def group_by_param(found: Iterable[TensorSlice]) -> dict[str, dict[Shape, TensorSlice]]:
    """The parts of each parameter, by where they stand in it."""
    paths: dict[str, dict[Shape, TensorSlice]] = {}
    for part in found:
        paths.setdefault(part.path, {})[part.index] = part
    return paths


def group_by_tensor(found: Iterable[TensorSlice]) -> dict[str, list[TensorSlice]]:
    """The parts of each tensor, which are all of it."""
    tensors: dict[str, list[TensorSlice]] = {}
    for part in found:
        tensors.setdefault(part.tensor, []).append(part)
    return tensors
