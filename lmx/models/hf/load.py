"""Parameters out of safetensors, each device's share and nothing else."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from lmx.config.registry import ConfigError
from lmx.models.hf.layout import Shape, TensorSlice, group_by_param
from lmx.models.hf.safetensors import SafetensorsFolder

ALIGNMENT = 64  # bytes; a host array that begins so becomes a device's without a copy
MAX_NAMES_SHOWN = 8  # names in a message
COMPARED_ROWS = 4096  # compared at a time
Index = tuple[slice, ...] | None


def flatten_params(tree: PyTree) -> dict[str, Any]:
    """Every array, or its shape, by its path, as in `norm.scale`."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves
    ]
    whole = [name.removesuffix(".value") for name in names]
    return dict(zip(whole, (leaf for _, leaf in leaves), strict=True))


def load_params(
    folder: SafetensorsFolder,
    found: Iterable[TensorSlice],
    like: PyTree,
    on_read: Callable[[], object] = lambda: None,
) -> PyTree:
    """The parameters in the shapes, dtypes and places of `like`.

    Beside what is loaded, the host holds this process's share of one parameter.
    `watch` is called after each tensor.
    """
    places = group_by_param(found)
    leaves = []
    for path, leaf in flatten_params(like).items():
        read = _cache_reads(partial(read_slice, folder, places[path], leaf, on_read))
        leaves.append(
            jax.make_array_from_callback(leaf.shape, leaf.sharding, read, leaf.dtype)
        )
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _cache_reads(read: Callable[[Index], np.ndarray]) -> Callable[[Index], np.ndarray]:
    """The same, for devices that hold equal shares: what was read is not read again."""
    known: dict[tuple, np.ndarray] = {}

    def reread(index: Index) -> np.ndarray:
        key = tuple((part.start, part.stop) for part in index or ())
        if key not in known:
            known[key] = read(index)
        return known[key]

    return reread


def read_slice(
    folder: SafetensorsFolder,
    places: Mapping[Shape, TensorSlice],
    leaf: jax.ShapeDtypeStruct,
    on_read: Callable[[], object],
    index: Index,
) -> np.ndarray:
    """That part of a parameter, tensor by tensor."""
    slices = index or ()
    bounds = [part.indices(size) for part, size in zip(slices, leaf.shape, strict=True)]
    out = _empty_aligned([stop - start for start, stop, _ in bounds], leaf.dtype)
    depth = len(next(iter(places)))
    for lead in itertools.product(*(range(*bound) for bound in bounds[:depth])):
        part = places[lead]
        here = tuple(i - start for i, (start, *_) in zip(lead, bounds, strict=False))
        folder.read_into(
            out[*here, ...],
            part.tensor,
            lambda tensor, part=part: part.view(tensor)[slices[depth:]],
        )
        on_read()
    return out


def _empty_aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    count = int(np.prod(shape)) * dtype.itemsize
    room = np.empty(count + ALIGNMENT, np.uint8)
    begin = -room.ctypes.data % ALIGNMENT
    return room[begin : begin + count].view(dtype).reshape(shape)


def check_tensors(
    folder: SafetensorsFolder, found: Sequence[TensorSlice], shapes: Mapping[str, Shape]
) -> None:
    """Refuses files that lack a parameter, or one of another shape."""
    places = group_by_param(found)
    gone = sorted({part.tensor for part in found} - set(folder.tensors))
    raise_if("the files lack", gone)
    raise_if("no tensor fills", sorted(set(shapes) - set(places)))
    for path, inside in places.items():
        depth = len(next(iter(inside)))
        every = set(np.ndindex(*shapes[path][:depth]))
        raise_if(f"no tensor fills {path} at", [f"{at}" for at in every - set(inside)])
    for part in found:
        if (have := folder.tensors[part.tensor].shape) != part.shape:
            raise ConfigError(
                f"{part.tensor} is {have} and the model needs {part.shape}: the"
                " config.json is not the one of these weights."
            )


def raise_if(what: str, names: Sequence[str]) -> None:
    """Raises if there are names, and lists them."""
    if names:
        more = (
            f" and {len(names) - MAX_NAMES_SHOWN} more"
            if len(names) > MAX_NAMES_SHOWN
            else ""
        )
        raise ConfigError(
            f"{what} {', '.join(names[:MAX_NAMES_SHOWN])}{more}: weights and config.json must"
            " be of one model."
        )


def check_tied_copy(folder: SafetensorsFolder, copy: str, original: str) -> None:
    """Refuses a tensor that should be the same as another and is not."""
    a, b = folder.view(copy), folder.view(original)
    same = a.shape == b.shape and all(
        np.array_equal(a[row : row + COMPARED_ROWS], b[row : row + COMPARED_ROWS])
        for row in range(0, len(a), COMPARED_ROWS)
    )
    if not same:
        raise ConfigError(
            f"{copy} is not {original}, though config.json says that they are tied: set"
            " tie_word_embeddings to false there if the file is right."
        )
