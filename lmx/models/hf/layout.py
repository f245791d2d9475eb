"""Maps tensors of safetensors files to parameters, with the layout of dimensions."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lmx.config.registry import require
from lmx.models.decoder import Decoder

Shape = tuple[int, ...]
LAYER, EXPERT = "{layer}", "{expert}"


class TensorMap(NamedTuple):
    """One row of a family's table.

    Attributes:
        hf: the name of the tensor, with `{layer}` and `{expert}` if each has its own.
        param: the parameter's path in the block of a layer or in the decoder; several
            if they share the tensor.
        layout: the dimensions of the tensor and of the parameter, in letters of
            `lmx/core/dims.py`, without layers and without experts that have their own
            tensor: "(N H) D -> D N H". Parameters that share a tensor are indexed by a
            digit, "D (3 N H) -> 3 D N H", or concatenated in a sum,
            "(N H+F) R -> R N H, R N F".
    """

    hf: str
    param: str | tuple[str, ...]
    layout: str


@dataclass(frozen=True)
class TensorSlice:
    """The part of a tensor that belongs to one parameter.

    Attributes:
        path: the parameter.
        index: the position in the parameter: the layer, and the expert if each has its
            own tensor.
        shape: the shape of the whole tensor in the file.
        split, select, order: the part is `reshape(split)[select].transpose(order)`.
    """

    tensor: str
    path: str
    index: Shape
    shape: Shape
    split: Shape
    select: tuple[int | slice, ...]
    order: Shape

    def view(self, tensor: np.ndarray) -> np.ndarray:
        """The part, in the parameter's layout; writing to it changes `tensor`."""
        return tensor.reshape(self.split)[self.select].transpose(self.order)


def map_tensors(
    rows: Iterable[TensorMap], shapes: Mapping[str, Shape], model: Decoder
) -> list[TensorSlice]:
    """The tensors of all parameters, in the order of layers and of the table.

    Rows whose parameters a layer lacks are skipped for that layer.
    """
    rows, layers = list(rows), {}
    for number, cycle in enumerate(model.stack.cycles):
        for (turn, kind), layer in np.ndenumerate(cycle.group.layers):
            layers[layer] = (f"stack.cycles.{number}.blocks.{kind}.", (turn,))
    places = [("", (), ""), *((*layers[layer], str(layer)) for layer in sorted(layers))]
    return [
        part
        for prefix, index, layer in places
        for row in rows
        if (LAYER in row.hf) == bool(layer)
        for part in expand_map(
            row._replace(hf=row.hf.replace(LAYER, layer)), prefix, index, shapes
        )
    ]


def expand_map(
    row: TensorMap, prefix: str, index: Shape, shapes: Mapping[str, Shape]
) -> Iterator[TensorSlice]:
    """The slices of a row at one layer, whose parameters have that prefix and index."""
    params = (row.param,) if isinstance(row.param, str) else row.param
    paths = [prefix + param for param in params]
    if not all(path in shapes for path in paths):
        return
    groups, dims = _parse_layout(row.layout)
    dims *= len(paths) // len(dims)
    depth = len(index) + (EXPERT in row.hf)
    words = [word for group in groups for word in group]
    sizes = {word: int(word) for word in words if word.isdigit()}
    for path, names in zip(paths, dims, strict=True):
        require(
            len(shapes[path]) == depth + len(names),
            f"{path} has shape {shapes[path]}: {row.layout!r} of {row.hf} needs"
            f" {len(names)} dimensions after the first {depth}.",
        )
        sizes |= dict(zip(names, shapes[path][depth:], strict=True))
    for word in words:
        sizes[word] = sum(sizes[name] for name in word.split("+"))
    shape = tuple(math.prod(sizes[word] for word in group) for group in groups)
    split = tuple(sizes[word] for word in words)
    indices = [index]
    if EXPERT in row.hf:
        indices = [(*index, expert) for expert in range(shapes[paths[0]][len(index)])]
    for position, (path, names) in enumerate(zip(paths, dims, strict=True)):
        select, found = [], []
        for word in words:
            if word.isdigit():
                select.append(position)
                continue
            summands = word.split("+")
            name = next(name for name in summands if name in names)
            start = sum(sizes[n] for n in summands[: summands.index(name)])
            select.append(slice(start, start + sizes[name]))
            found.append(name)
        order = tuple(found.index(name) for name in names)
        for at in indices:
            tensor = row.hf.replace(EXPERT, str(at[-1]) if at else "")
            yield TensorSlice(tensor, path, at, shape, split, tuple(select), order)


def _parse_layout(layout: str) -> tuple[list[list[str]], list[list[str]]]:
    """The names in each dimension of the tensor, and those of each parameter."""
    left, right = layout.split("->")
    dims = [[d for d in side.split() if not d.isdigit()] for side in right.split(",")]
    groups = [
        group.split()
        for n, part in enumerate(left.replace(")", "(").split("("))
        for group in ([part] if n % 2 else part.split())
    ]
    return groups, dims


def group_by_param(found: Iterable[TensorSlice]) -> dict[str, dict[Shape, TensorSlice]]:
    """The slices of each parameter, by index."""
    params: dict[str, dict[Shape, TensorSlice]] = {}
    for part in found:
        params.setdefault(part.path, {})[part.index] = part
    return params


def group_by_tensor(found: Iterable[TensorSlice]) -> dict[str, list[TensorSlice]]:
    """The slices of each tensor, which cover it."""
    tensors: dict[str, list[TensorSlice]] = {}
    for part in found:
        tensors.setdefault(part.tensor, []).append(part)
    return tensors
