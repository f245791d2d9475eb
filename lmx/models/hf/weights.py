"""Reads parameters from safetensors, each process its share only, and writes them."""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from lmx.config.registry import ConfigError, require
from lmx.models.hf.layout import Shape, TensorSlice, group_by_param, group_by_tensor
from lmx.models.hf.safetensors import (
    SHARD_BYTES,
    SafetensorsFolder,
    TensorInfo,
    write_tensors,
)

ALIGNMENT = 64  # bytes; jax aliases host arrays that are aligned so, without a copy
MAX_NAMES_SHOWN = 8
COMPARED_ROWS = 4096  # at a time
Bounds = Sequence[Sequence[int]]  # start and stop along each dimension


def flatten_params(tree: PyTree) -> dict[str, Any]:
    """Every array, or its shape, by its path, as in `norm.scale`."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    keystr = partial(jax.tree_util.keystr, simple=True, separator=".")
    return {keystr(path).removesuffix(".value"): leaf for path, leaf in leaves}


def load_params(
    folder: SafetensorsFolder,
    found: Iterable[TensorSlice],
    like: PyTree,
    on_read: Callable[[], object] = lambda: None,
) -> PyTree:
    """The parameters, with the shapes, dtypes and shardings of `like`.

    On top of the result, the host holds this process's share of one parameter.
    `on_read` is called after each tensor.
    """
    params = group_by_param(found)

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
    out = _empty_aligned([stop - start for start, stop in bounds], dtype)
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


def _empty_aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    count = int(np.prod(shape)) * dtype.itemsize
    buffer = np.empty(count + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + count].view(dtype).reshape(shape)


def save_params(
    folder: Path,
    found: Iterable[TensorSlice],
    params: Mapping[str, jax.Array],
    on_write: Callable[[int], object] = lambda size: None,
    limit: int = SHARD_BYTES,
) -> None:
    """Writes all tensors of the slices, one in memory at a time.

    `on_write` receives the bytes of each.
    """
    tensors = group_by_tensor(found)

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
    folder: SafetensorsFolder, found: Sequence[TensorSlice], shapes: Mapping[str, Shape]
) -> None:
    """Refuses files that lack a parameter, or have one of another shape."""
    params = group_by_param(found)
    missing = {part.tensor for part in found} - folder.tensors.keys()
    raise_if("the files lack", sorted(missing))
    raise_if("no tensor fills", sorted(shapes.keys() - params.keys()))
    for path, parts in params.items():
        depth = len(next(iter(parts)))
        empty = set(np.ndindex(*shapes[path][:depth])) - parts.keys()
        raise_if(f"no tensor fills {path} at", [f"{index}" for index in sorted(empty)])
    for part in found:
        if (shape := folder.tensors[part.tensor].shape) != part.shape:
            raise ConfigError(
                f"{part.tensor} has shape {shape} and the model needs {part.shape}: use"
                " the config.json of these weights."
            )


def raise_if(problem: str, names: Sequence[str]) -> None:
    """Raises a ConfigError that lists the names, if there are any."""
    if names:
        rest = len(names) - MAX_NAMES_SHOWN
        more = f" and {rest} more" if rest > 0 else ""
        raise ConfigError(
            f"{problem} {', '.join(names[:MAX_NAMES_SHOWN])}{more}: weights and"
            " config.json must be of one model."
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
        f"{copy} differs from {original}, and config.json says that they are tied:"
        " if the weights are right, set tie_word_embeddings to false there.",
    )
