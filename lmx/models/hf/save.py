"""Parameters written as safetensors, one tensor of a file in memory at a time."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jax
import numpy as np

from lmx.models.hf import tensors
from lmx.models.hf.table import Part, by_tensor
from lmx.models.hf.tensors import Tensor


def save(
    folder: Path,
    found: Iterable[Part],
    params: Mapping[str, jax.Array],
    watch: Callable[[int], object] = lambda size: None,
    limit: int = tensors.SHARD,
) -> None:
    """Writes every tensor that the parts name. `watch` is told the bytes of each."""
    inside = by_tensor(found)

    def value(tensor: Tensor) -> np.ndarray:
        array = np.empty(tensor.shape, tensor.dtype)
        for part in inside[tensor.name]:
            part.view(array)[...] = jax.device_get(params[part.path][part.lead])
        watch(tensor.bytes)
        return array

    described = [
        Tensor(name, np.dtype(params[first.path].dtype), first.shape)
        for name, (first, *_) in inside.items()
    ]
    tensors.write(folder, described, value, limit)
