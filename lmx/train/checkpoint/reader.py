"""Reads a checkpoint: its metadata, its tensors, and damage to them."""

import hashlib
import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lmx.config.registry import ConfigError
from lmx.run.schema import check_schema
from lmx.train.checkpoint.digest import (
    Checksums,
    Index,
    add_checksums,
    checksum_part,
    normalize,
)
from lmx.train.checkpoint.storage import StoredPart, StoredTensor

METADATA = "metadata.json"
MISMATCH = "is not what was saved"
THREADS = 4  # that read
ALIGNMENT = 64  # bytes: XLA takes over host memory that begins at such an address


class CheckpointFault(NamedTuple):
    """Damage to a file of a checkpoint; `tensor` is None if it affects all of them."""

    file: str
    tensor: str | None
    reason: str

    def __str__(self) -> str:
        tensor = f"{self.tensor} " if self.tensor else ""
        return f"{self.file}: {tensor}{self.reason}"


class DamageError(ConfigError):
    """A checkpoint on disk is not what was saved: which files and tensors, and why."""

    def __init__(self, path: Path, *faults: CheckpointFault):
        super().__init__("\n".join(f"{path}/{fault}" for fault in faults))
        self.faults = faults


class CheckpointReader:
    """The checkpoint in the folder of one step.

    Any process reads any part of any tensor, whatever mesh it was saved on, and waits
    for no other process. `tensors` are those of the metadata if not given.
    """

    def __init__(self, path: Path, tensors: Mapping[str, StoredTensor] | None = None):
        self.path, self._tensors = path, tensors

    def read_metadata(self) -> dict[str, Any]:
        """Schema, step, run ID, parent, lineage, digests, their root, and tensors.

        Raises DamageError if it cannot be read, and ConfigError if it has another
        schema.
        """
        try:
            metadata = json.loads((self.path / METADATA).read_bytes())
            schema, checksum = metadata["schema"], metadata.pop("checksum")
        except FileNotFoundError:
            if (self.path / "meta").is_dir():  # as in schema 3
                check_schema(self.path, 3)
            raise self._damage(METADATA, None, "is missing") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damage(METADATA, None, f"cannot be read ({error})") from None
        check_schema(self.path, schema)
        if checksum_metadata(metadata) != checksum:
            raise self._damage(METADATA, None, "does not match its checksum")
        return metadata

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """All tensors, by name."""
        if self._tensors is None:
            stored = self.read_metadata()["tensors"]
            self._tensors = {n: StoredTensor.from_json(t) for n, t in stored.items()}
        return self._tensors

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """A tensor, or the part at that index, in memory that a device can take over.

        Reads only the stored parts that overlap with it.
        """
        tensor = self.tensors[name]
        whole = (slice(None),) * len(tensor.shape)
        target = normalize(whole if index is None else index, tensor.shape)
        array = _empty_aligned([s.stop - s.start for s in target], tensor.dtype)
        for part in tensor.parts:
            overlap = _intersect(part.index, target)
            if overlap is not None:
                data = self.read_part(name, part)[_relative(overlap, part.index)]
                array[_relative(overlap, target)] = data
        return array

    def read_part(self, name: str, part: StoredPart) -> np.ndarray:
        """A stored part of a tensor."""
        try:
            data = np.fromfile(
                self.path / part.file, np.uint8, part.size, offset=part.offset
            )
            if data.size < part.size:
                raise OSError("the file is too short")
        except OSError as error:
            raise self._damage(part.file, name, f"cannot be read ({error})") from None
        shape = [stop - start for start, stop in part.bounds]
        return data.view(self.tensors[name].dtype).reshape(shape)

    def load(self, abstract: Mapping[str, Any]) -> dict[str, tuple[jax.Array, Any]]:
        """Tensors with these names, shapes, dtypes and shardings.

        And the checksums of what this process read of each.
        """
        wide = jax.dtypes.canonicalize_dtype(float) == "float64"  # in this thread

        def load(name: str) -> tuple[jax.Array, Checksums]:
            with jax.enable_x64(wide):
                return self._load_tensor(name, abstract[name])

        with ThreadPoolExecutor(THREADS) as pool:
            return dict(zip(abstract, pool.map(load, abstract), strict=True))

    def _load_tensor(self, name: str, abstract: Any) -> tuple[jax.Array, Checksums]:
        shape = self.tensors[name].shape
        if shape != tuple(abstract.shape):
            raise ConfigError(
                f"{name} has shape {shape} in {self.path}, and {abstract.shape} in this"
                " model: it is another model."
            )
        devices = abstract.sharding.addressable_devices_indices_map(shape)
        indices = {f"{index}": index for index in devices.values()}
        parts = {key: self.read(name, index) for key, index in indices.items()}
        shards = [
            jax.device_put(parts[f"{i}"].astype(abstract.dtype, copy=False), device)
            for device, i in devices.items()
        ]
        array = jax.make_array_from_single_device_arrays(
            shape, abstract.sharding, shards
        )
        firsts = [s.index for s in array.addressable_shards if not s.replica_id]
        return array, add_checksums(
            checksum_part(parts[f"{index}"], index, shape) for index in firsts
        )

    def verify(self, *, sizes_only: bool = False) -> list[CheckpointFault]:
        """What is not as saved, by reading all of it, or by the sizes of files alone."""
        check = self._check_size if sizes_only else self._check_part
        try:
            tensors = self.tensors
        except DamageError as error:
            return list(error.faults)
        parts = [(name, part) for name, t in tensors.items() for part in t.parts]
        with ThreadPoolExecutor(THREADS) as pool:
            faults = pool.map(lambda pair: check(*pair), parts)
            return [fault for fault in faults if fault]

    def _check_part(self, name: str, part: StoredPart) -> CheckpointFault | None:
        try:
            data = self.read_part(name, part)
        except DamageError as error:
            return error.faults[0]
        sums = checksum_part(data, part.index, self.tensors[name].shape)
        if sums.tolist() == part.checksums:
            return None
        return CheckpointFault(part.file, name, MISMATCH)

    def _check_size(self, name: str, part: StoredPart) -> CheckpointFault | None:
        file = self.path / part.file
        if file.is_file() and file.stat().st_size >= part.offset + part.size:
            return None
        return CheckpointFault(part.file, name, "is truncated or missing")

    def _damage(self, file: str, tensor: str | None, reason: str) -> DamageError:
        return DamageError(self.path, CheckpointFault(file, tensor, reason))


def checksum_metadata(metadata: Mapping[str, Any]) -> str:
    """A digest of the metadata without its field `checksum`."""
    content = json.dumps(metadata, sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _empty_aligned(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """Memory that JAX does not copy to a CPU device."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)


def _intersect(a: Index, b: Index) -> Index | None:
    """The index of the elements that are at both indices; None if there are none."""
    both = [
        slice(max(x.start, y.start), min(x.stop, y.stop))
        for x, y in zip(a, b, strict=True)
    ]
    return tuple(both) if all(s.start < s.stop for s in both) else None


def _relative(index: Index, origin: Index) -> Index:
    """The index within the part at `origin`."""
    return tuple(
        slice(s.start - o.start, s.stop - o.start)
        for s, o in zip(index, origin, strict=True)
    )
