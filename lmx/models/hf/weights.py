"""Maps tensors of safetensors files to parameters, and reads and writes these."""

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import EllipsisType

import jax
import numpy as np
from einops import rearrange
from jaxtyping import PyTree

from lmx.config.registry import require
from lmx.core.hardware import empty_aligned
from lmx.models.decoder import Decoder
from lmx.models.hf.fields import TensorMap
from lmx.models.hf.safetensors import (
    SHARD_BYTES,
    SafetensorsFolder,
    TensorInfo,
    write_tensors,
)
from lmx.models.params import MAX_NAMES_SHOWN, flatten_params

Shape = tuple[int, ...]
Bounds = Sequence[Sequence[int]]  # start and stop along each dimension
LAYER, EXPERT = "{layer}", "{expert}"
COMPARED_ROWS = 4096  # at a time


@dataclass(frozen=True)
class TensorSlice:
    """The part of a tensor that belongs to one parameter.

    Attributes:
        path: the parameter.
        index: the layer, and the expert if each has its own tensor.
        shape: shape of the whole tensor in the file.
        pattern, sizes, part: the slice is `rearrange(tensor, pattern, **sizes)[part]`.
    """

    tensor: str
    path: str
    index: Shape
    shape: Shape
    pattern: str
    sizes: Mapping[str, int]
    part: int | EllipsisType

    def view(self, tensor: np.ndarray) -> np.ndarray:
        """The part, in the parameter's layout; writing to it changes `tensor`."""
        return rearrange(tensor, self.pattern, **self.sizes)[self.part]


def map_tensors(
    tensor_maps: Iterable[TensorMap], shapes: Mapping[str, Shape], model: Decoder
) -> list[TensorSlice]:
    """The tensors of all parameters, in the order of layers and maps.

    Maps whose parameters a layer lacks are skipped for that layer.
    """
    layers = {}
    for number, cycle in enumerate(model.stack.cycles):
        for (turn, kind), layer in np.ndenumerate(cycle.group.layers):
            layers[layer] = (f"stack.cycles.{number}.blocks.{kind}.", (turn,))
    paths = [("", (), ""), *((*layers[layer], str(layer)) for layer in sorted(layers))]
    return [
        part
        for (prefix, index, layer), row in itertools.product(paths, tensor_maps)
        if (LAYER in row.hf) == bool(layer)
        for part in expand_map(
            row._replace(hf=row.hf.replace(LAYER, layer)), prefix, index, shapes
        )
    ]


def expand_map(
    row: TensorMap, prefix: str, index: Shape, shapes: Mapping[str, Shape]
) -> Iterator[TensorSlice]:
    """The slices of one map at the layer with that prefix and index."""
    params = (row.param,) if isinstance(row.param, str) else row.param
    paths = [prefix + param for param in params]
    if not all(path in shapes for path in paths):
        return
    left, right = row.layout.split("->")
    names = re.findall("[A-Z]", right)
    depth = len(index) + (EXPERT in row.hf)
    for path in paths:
        require(
            len(shapes[path]) == depth + len(names),
            f"{path} has shape {shapes[path]}: {row.layout!r} of {row.hf} needs"
            f" {len(names)} dimensions after the first {depth}.",
        )
    sizes = dict(zip(names, shapes[paths[0]][depth:], strict=True))
    if len(paths) > 1:
        sizes["parts"] = len(paths)
    pattern = re.sub(r"\d", "parts", row.layout)
    dims = re.findall(r"\(.*?\)|\w+", re.sub(r"\d", "parts", left))
    shape = tuple(math.prod(sizes[n] for n in dim.strip("()").split()) for dim in dims)
    indices = [index]
    if EXPERT in row.hf:
        indices = [(*index, expert) for expert in range(shapes[paths[0]][len(index)])]
    for number, path in enumerate(paths):
        part = number if len(paths) > 1 else ...
        for at in indices:
            tensor = row.hf.replace(EXPERT, str(at[-1]) if at else "")
            yield TensorSlice(tensor, path, at, shape, pattern, sizes, part)


def group_by_param(
    slices: Iterable[TensorSlice],
) -> dict[str, dict[Shape, TensorSlice]]:
    """The slices of each parameter, by index."""
    params: dict[str, dict[Shape, TensorSlice]] = {}
    for part in slices:
        params.setdefault(part.path, {})[part.index] = part
    return params


def group_by_tensor(slices: Iterable[TensorSlice]) -> dict[str, list[TensorSlice]]:
    """The slices of each tensor, which cover it."""
    tensors: dict[str, list[TensorSlice]] = {}
    for part in slices:
        tensors.setdefault(part.tensor, []).append(part)
    return tensors


def load_params(
    folder: SafetensorsFolder,
    slices: Iterable[TensorSlice],
    like: PyTree,
    on_read: Callable[[], object] = lambda: None,
) -> PyTree:
    """The parameters, with the shapes, dtypes and shardings of `like`.

    On top of the result, the host holds this process's share of one parameter.
    """
    params = group_by_param(slices)

    def load(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        args = (folder, params[path], leaf.dtype, on_read)
        read = functools.cache(partial(read_slice, *args))  # devices with equal shares

        def read_share(index: tuple[slice, ...] | None) -> np.ndarray:
            sized = zip(index or (), leaf.shape, strict=True)
            return read(tuple(part.indices(size)[:2] for part, size in sized))

        return jax.make_array_from_callback(
            leaf.shape, leaf.sharding, read_share, leaf.dtype
        )

    leaves = [load(path, leaf) for path, leaf in flatten_params(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def read_slice(
    folder: SafetensorsFolder,
    parts: Mapping[Shape, TensorSlice],
    dtype: np.dtype,
    on_read: Callable[[], object],
    bounds: Bounds,
) -> np.ndarray:
    """A slice of a parameter, read tensor by tensor."""
    out = empty_aligned([stop - start for start, stop in bounds], dtype)
    depth = len(next(iter(parts)))
    inner = tuple(slice(*bound) for bound in bounds[depth:])
    for index in itertools.product(*(range(*bound) for bound in bounds[:depth])):
        part = parts[index]
        at = tuple(i - start for i, (start, _) in zip(index, bounds, strict=False))
        folder.read_into(
            out[*at, ...],
            part.tensor,
            lambda tensor, part=part: part.view(tensor)[inner],
        )
        on_read()
    return out


def save_params(
    folder: Path,
    slices: Iterable[TensorSlice],
    params: Mapping[str, jax.Array],
    on_write: Callable[[int], object] = lambda size: None,
    limit: int = SHARD_BYTES,
) -> None:
    """Writes all tensors of the slices, one in memory at a time."""
    tensors = group_by_tensor(slices)

    def fill(tensor: TensorInfo) -> np.ndarray:
        array = np.empty(tensor.shape, tensor.dtype)
        for part in tensors[tensor.name]:
            part.view(array)[...] = jax.device_get(params[part.path][part.index])
        on_write(tensor.bytes)
        return array

    infos = [
        TensorInfo(name, np.dtype(params[part.path].dtype), part.shape)
        for name, (part, *_) in tensors.items()
    ]
    write_tensors(folder, infos, fill, limit)


def check_tensors(
    folder: SafetensorsFolder,
    slices: Sequence[TensorSlice],
    shapes: Mapping[str, Shape],
) -> None:
    """Refuses files that lack a parameter, or have one of another shape."""
    params = group_by_param(slices)
    missing = {part.tensor for part in slices} - folder.tensors.keys()
    raise_if("the files lack", sorted(missing))
    raise_if("no tensor fills", sorted(shapes.keys() - params.keys()))
    for path, parts in params.items():
        depth = len(next(iter(parts)))
        empty = set(np.ndindex(*shapes[path][:depth])) - parts.keys()
        raise_if(f"no tensor fills {path} at", [f"{index}" for index in sorted(empty)])
    for part in slices:
        shape = folder.tensors[part.tensor].shape
        require(
            shape == part.shape,
            f"{part.tensor} has shape {shape} and the model needs {part.shape}: use the"
            " config.json of these weights.",
        )


def raise_if(problem: str, names: Sequence[str]) -> None:
    """Raises a ConfigError that lists the names, if there are any."""
    rest = len(names) - MAX_NAMES_SHOWN
    more = f" and {rest} more" if rest > 0 else ""
    require(
        not names,
        f"{problem} {', '.join(names[:MAX_NAMES_SHOWN])}{more}: weights and config.json"
        " must be of one model.",
    )


def check_tied_copy(folder: SafetensorsFolder, copy: str, original: str) -> None:
    """Refuses a tensor that differs from the one that it must equal."""
    a, b = folder.view(copy), folder.view(original)
    same = a.shape == b.shape and all(
        np.array_equal(a[row : row + COMPARED_ROWS], b[row : row + COMPARED_ROWS])
        for row in range(0, len(a), COMPARED_ROWS)
    )
    require(
        same,
        f"{copy} differs from {original}, and config.json says that they are tied: if"
        " the weights are right, set tie_word_embeddings to false there.",
    )
