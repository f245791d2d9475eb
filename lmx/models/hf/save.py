"""Parameters written as safetensors, one tensor of a file in memory at a time."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jax
import numpy as np

from lmx.models.hf import safetensors
from lmx.models.hf.layout import TensorSlice, group_by_tensor
from lmx.models.hf.safetensors import TensorInfo


def save_params(
    folder: Path,
    found: Iterable[TensorSlice],
    params: Mapping[str, jax.Array],
    on_write: Callable[[int], object] = lambda size: None,
    limit: int = safetensors.SHARD_BYTES,
) -> None:
    """Writes every tensor that the parts name. `watch` is told the bytes of each."""
    inside = group_by_tensor(found)

    def value(tensor: TensorInfo) -> np.ndarray:
        array = np.empty(tensor.shape, tensor.dtype)
        for part in inside[tensor.name]:
            part.view(array)[...] = jax.device_get(params[part.path][part.index])
        on_write(tensor.bytes)
        return array

    described = [
        TensorInfo(name, np.dtype(params[first.path].dtype), first.shape)
        for name, (first, *_) in inside.items()
    ]
    safetensors.write_tensors(folder, described, value, limit)
