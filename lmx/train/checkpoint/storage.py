"""Checkpoint files: copies tensors off their devices, and writes them.

Each process writes one file, `arrays-<process>.bin`: the elements of its shards, one
after the other, in C order and not compressed.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lmx.train.checkpoint.digest import Index, checksum_part, normalize

PART_BYTES = 8 << 20  # rows of a larger shard are separate parts


class StoredPart(NamedTuple):
    """A part of a tensor: `size` bytes of a file from `offset` on.

    Attributes:
        bounds: start and stop of the part in each dimension of the tensor.
        checksums: what `checksum_part` returned before the part was written.
    """

    file: str
    offset: int
    size: int
    bounds: list[list[int]]
    checksums: list[int]

    @property
    def index(self) -> Index:
        """Where the part is in the tensor."""
        return tuple(slice(*pair) for pair in self.bounds)


class StoredTensor(NamedTuple):
    """A tensor in the files of a checkpoint."""

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: list[StoredPart]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "StoredTensor":
        """The inverse of `to_json`."""
        parts = [StoredPart(**part) for part in fields["parts"]]
        return cls(tuple(fields["shape"]), np.dtype(fields["dtype"]), parts)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the metadata of a checkpoint."""
        parts = [part._asdict() for part in self.parts]
        return {"shape": self.shape, "dtype": f"{self.dtype}", "parts": parts}


class HostTensor(NamedTuple):
    """The shards of an array that this process saves, in host memory."""

    shape: tuple[int, ...]
    dtype: np.dtype
    shards: list[tuple[Index, np.ndarray]]


class HostBuffers:
    """Host memory for the arrays of a checkpoint, reused by the next one.

    Arrays on CPU devices are copied, because JAX does not donate memory that NumPy
    refers to. Buffers are kept because new memory is slow to touch.
    """

    def __init__(self):
        self.buffers: dict[tuple[str, str], np.ndarray] = {}

    def copy(self, arrays: Mapping[str, jax.Array]) -> dict[str, HostTensor]:
        """Copies what this process saves: the first replica of each element."""
        shards = {
            name: [shard for shard in array.addressable_shards if not shard.replica_id]
            for name, array in arrays.items()
        }
        for shard in (shard for found in shards.values() for shard in found):
            shard.data.copy_to_host_async()
        return {
            name: HostTensor(
                array.shape,
                array.dtype,
                [(shard.index, self._copy(name, shard)) for shard in shards[name]],
            )
            for name, array in arrays.items()
        }

    def _copy(self, name: str, shard: Any) -> np.ndarray:
        data = np.asarray(shard.data)
        if shard.device.platform != "cpu":
            return data
        key = (name, f"{shard.index}")
        buffer = self.buffers.get(key)
        if buffer is None or (buffer.shape, buffer.dtype) != (data.shape, data.dtype):
            buffer = self.buffers[key] = np.empty(data.shape, data.dtype)
        buffer[...] = data
        return buffer


def write_tensors(
    folder: Path, tensors: Mapping[str, HostTensor]
) -> dict[str, StoredTensor]:
    """Writes the file of this process and flushes it to disk."""
    folder.mkdir(parents=True, exist_ok=True)
    path, stored = folder / f"arrays-{jax.process_index()}.bin", {}
    with path.open("wb") as file:
        for name, tensor in tensors.items():
            parts = []
            for index, data in _split(tensor):
                sums = checksum_part(data, index, tensor.shape).tolist()
                bounds = [[s.start, s.stop] for s in index]
                place = (path.name, file.tell(), data.nbytes)
                parts.append(StoredPart(*place, bounds, sums))
                file.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8))
            stored[name] = StoredTensor(tensor.shape, tensor.dtype, parts)
        file.flush()
        os.fsync(file.fileno())
    return stored


def _split(tensor: HostTensor) -> Iterator[tuple[Index, np.ndarray]]:
    """The shards of a tensor, in parts of about `PART_BYTES`."""
    for index, data in tensor.shards:
        index = normalize(index, tensor.shape)
        if data.nbytes <= PART_BYTES or not data.ndim:
            yield index, data
            continue
        rows = max(1, PART_BYTES * len(data) // data.nbytes)
        for start in range(0, len(data), rows):
            part, first = data[start : start + rows], index[0].start + start
            yield (slice(first, first + len(part)), *index[1:]), part
