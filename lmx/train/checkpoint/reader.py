"""A saved state as it stands on disk: its tensors read, and what is wrong with them."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorstore as ts

from lmx.config.registry import ConfigError
from lmx.train.checkpoint.digest import (
    Checksums,
    checksum_part,
    combine_digests,
    format_digest,
)

SCHEMA = 3  # of what a checkpoint holds; a reader refuses any other
METADATA, STATE = "meta/metadata", "state"
PARALLEL_TENSORS = 4  # tensors read at the same time
CACHE_BYTES = 32 << 20  # bytes, for the names of tensors and where they are
ALIGNMENT = 64  # bytes, as XLA wants them
PIECE_BYTES = 1 << 20  # bytes that are read at a time to be looked at once

Index = tuple[slice, ...]


class CheckpointFault(NamedTuple):
    """What is wrong with a saved state. `tensor` is None where it is wrong with all."""

    file: str
    tensor: str | None
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.file}: " + (f"{self.tensor} " if self.tensor else "") + self.reason
        )


class ChunkLocation(NamedTuple):
    """Bytes of a file below the folder of a state's tensors.

    `chunk` is the chunk of a tensor that they are, as in `0.3`, and empty where they
    are a part of the tree that holds it.
    """

    file: str
    offset: int
    size: int
    chunk: str = ""


class DamageError(ConfigError):
    """A state on disk is not what was saved: which files, which tensors, and why."""

    def __init__(self, path: Path, *faults: CheckpointFault):
        super().__init__("\n".join(f"{path}/{fault}" for fault in faults))
        self.faults = faults


class CheckpointReader:
    """The state in the folder of one step.

    Orbax's files are read as what they are, arrays of Zarr in a key-value store of
    OCDBT, without asking Orbax: so that no process waits for another, one tensor after
    the other is in memory, and its digest is taken of the very bytes that were read.
    """

    def __init__(self, path: Path):
        self.path = path
        self.context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})

    def read_metadata(self) -> dict[str, Any]:
        """What the state says of itself: schema, step, digests, root, lineage, extra.

        Raises DamageError where it cannot be read, ConfigError if its schema is not
        the one of this lmx.
        """
        try:
            meta = json.loads((self.path / METADATA).read_bytes())
            schema = meta["schema"]
        except FileNotFoundError:
            raise self._damage_error(METADATA, None, "is missing") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damage_error(
                METADATA, None, f"cannot be read ({error})"
            ) from None
        if schema != SCHEMA:
            other = "a newer" if schema > SCHEMA else "an older"
            raise ConfigError(
                f"{self.path} was written by {other} lmx (schema {schema}, and this one"
                f" reads {SCHEMA}): use that one."
            )
        if combine_digests(meta["digests"]) != meta["root"]:
            raise self._damage_error(
                METADATA, None, "does not add up: its root is another"
            )
        return meta

    def open_tensor(self, name: str) -> ts.TensorStore:
        """One tensor, opened and not read."""
        kvstore = {
            "driver": "ocdbt",
            "base": {"driver": "file", "path": f"{self.path / STATE}/"},
            "path": f"{name}/",
        }
        try:
            opening = ts.open(
                {"driver": "zarr", "kvstore": kvstore}, context=self.context
            )
            return opening.result()
        except (ValueError, OSError) as error:
            raise self._read_error(name, error) from None

    def read_part(self, name: str, tensor: ts.TensorStore, index: Index) -> np.ndarray:
        """A part of a tensor, in memory that a device may take over as it is."""
        part = tensor[index]
        found = empty_aligned(part.shape, part.dtype.numpy_dtype)
        try:
            ts.array(found).write(part).result()
            return found
        except (ValueError, OSError) as error:
            raise self._read_error(name, error) from None

    def load(
        self, abstract_arrays: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Checksums]]:
        """The tensors of these names, on the devices of the shapes that are wanted.

        And the sums of what this process read of them.
        """
        wide = jax.dtypes.canonicalize_dtype(float) == "float64"  # in this thread

        def placed(name: str, like: Any) -> tuple[jax.Array, Checksums]:
            with jax.enable_x64(wide):
                return self._load_tensor(name, like)

        with ThreadPoolExecutor(PARALLEL_TENSORS) as pool:
            found = list(
                pool.map(placed, abstract_arrays.keys(), abstract_arrays.values())
            )
        arrays, sums = zip(*found, strict=True) if found else ((), ())
        return (
            dict(zip(abstract_arrays, arrays, strict=True)),
            dict(zip(abstract_arrays, sums, strict=True)),
        )

    def _load_tensor(self, name: str, like: Any) -> tuple[jax.Array, Checksums]:
        """One tensor on its devices, each part read once."""
        tensor = self.open_tensor(name)
        if tensor.shape != tuple(like.shape):
            raise ConfigError(
                f"{name} has shape {tensor.shape} in {self.path} and {like.shape} here:"
                " it is another model."
            )
        devices = like.sharding.addressable_devices_indices_map(tensor.shape)
        parts: dict[str, np.ndarray] = {}
        for index in devices.values():
            if str(index) not in parts:
                parts[str(index)] = self.read_part(name, tensor, index)
        found = [
            jax.device_put(parts[str(index)].astype(like.dtype, copy=False), device)
            for device, index in devices.items()
        ]
        array = jax.make_array_from_single_device_arrays(
            tensor.shape, like.sharding, found
        )
        total = np.zeros(2, np.uint64)
        for shard in array.addressable_shards:
            if shard.replica_id == 0:
                total += checksum_part(
                    parts[str(shard.index)], shard.index, tensor.shape
                )
        return array, total

    def compute_checksums(
        self, parts: Mapping[str, Sequence[Index] | None]
    ) -> dict[str, Checksums]:
        """Sums over these parts of tensors; None: all of one, a chunk at a time."""
        found = {}
        for name, indices in parts.items():
            tensor = self.open_tensor(name)
            found[name] = np.zeros(2, np.uint64)
            for index in iter_chunks(tensor) if indices is None else indices:
                for inner, part in self._iter_pieces(name, tensor, index):
                    found[name] += checksum_part(part, inner, tensor.shape)
        return found

    def _iter_pieces(
        self, name: str, tensor: ts.TensorStore, index: Index
    ) -> Iterator[tuple[Index, np.ndarray]]:
        """A part of a tensor by as many rows as stay in a cache, each for a moment.

        Where the part is one chunk it is read off its file, which takes a fifth of
        tensorstore's time: no new memory is touched.
        """
        shape, dtype = tensor[index].shape, tensor.dtype.numpy_dtype
        place = self._find_raw_chunk(name, tensor, index)
        if place is None:
            yield index, self.read_part(name, tensor, index)
            return
        row = place.size // shape[0]
        rows = min(shape[0], max(1, PIECE_BYTES // row))
        memory = np.empty(rows * row, np.uint8)
        try:
            with open(self.path / STATE / place.file, "rb") as file:
                file.seek(place.offset)
                for first in range(0, shape[0], rows):
                    count = min(rows, shape[0] - first)
                    part = memory[: count * row]
                    if file.readinto(part.data) < part.size:
                        raise OSError("it is cut short")
                    begin = (index[0].start or 0) + first
                    inner = (slice(begin, begin + count), *index[1:])
                    yield inner, part.view(dtype).reshape(count, *shape[1:])
        except OSError as error:
            raise self._read_error(name, error) from None

    def _find_raw_chunk(
        self, name: str, tensor: ts.TensorStore, index: Index
    ) -> ChunkLocation | None:
        """The bytes of a file that are the elements of a part, if there are such."""
        kind, inner = tensor.spec().to_json()["metadata"], tensor[index]
        sizes, packed = kind["chunks"], kind["compressor"] or kind["filters"]
        if packed or kind["order"] != "C" or not sizes or list(inner.shape) != sizes:
            return None
        at = zip(inner.domain.origin, sizes, strict=True)
        chunk = ".".join(str(begin // size) for begin, size in at)
        found = (p for p in self.chunk_locations.get(name, ()) if p.chunk == chunk)
        size = inner.size * tensor.dtype.numpy_dtype.itemsize
        return next((place for place in found if place.size == size), None)

    def verify(self) -> list[CheckpointFault]:
        """Reads all of the state again; what is not as it was saved, by tensor."""
        try:
            digests = self.read_metadata()["digests"]
        except DamageError as error:
            return list(error.faults)
        with ThreadPoolExecutor(PARALLEL_TENSORS) as pool:
            found = pool.map(self._verify_tensor, digests, digests.values())
        return [fault for fault in found if fault]

    def _verify_tensor(self, name: str, digest: str) -> CheckpointFault | None:
        try:
            sums = self.compute_checksums({name: None})[name]
        except DamageError as error:
            return error.faults[0]
        if self.format_digest(name, sums) == digest:
            return None
        return CheckpointFault(self.find_file(name), name, "is not what was saved")

    def format_digest(self, name: str, sums: Checksums) -> str:
        """The digest of a tensor, given the sums of all of it."""
        tensor = self.open_tensor(name)
        like = jax.ShapeDtypeStruct(tensor.shape, tensor.dtype.numpy_dtype)
        return format_digest(name, like, sums)

    def find_file(self, name: str) -> str:
        """The file that a tensor is in, or the first one, as far as that is known."""
        try:
            return f"{STATE}/{self.chunk_locations[name][0].file}"
        except (ValueError, OSError, KeyError, IndexError):
            return STATE

    @cached_property
    def chunk_locations(self) -> dict[str, list[ChunkLocation]]:
        """Where the tree of OCDBT says that the chunks of each tensor are."""
        base = ts.KvStore.open({"driver": "file", "path": f"{self.path / STATE}/"})
        store, found = base.result(), {}
        newest = ts.ocdbt.dump(store).result()["versions"][-1]["root"]["location"]
        nodes = [newest]
        for location in nodes:
            for entry in ts.ocdbt.dump(store, node=location).result()["entries"]:
                name, _, chunk = entry["key"].decode().rpartition("/")
                if "location" in entry:
                    nodes.append(entry["location"])
                elif chunk != ".zarray":
                    apart = "indirect_value" in entry
                    place = entry["indirect_value"] if apart else location
                    _, folder, file, begin, size = place.split(":")
                    place = ChunkLocation(
                        folder + file, int(begin), int(size), chunk if apart else ""
                    )
                    found.setdefault(name, []).append(place)
        return found

    def check_sizes(self) -> list[CheckpointFault]:
        """Which files are missing or too short, by their sizes alone."""
        try:
            digests, places = self.read_metadata()["digests"], self.chunk_locations
        except DamageError as error:
            return list(error.faults)
        except (ValueError, OSError) as error:
            return [
                CheckpointFault(STATE, None, f"cannot be read ({_first_line(error)})")
            ]
        return [
            CheckpointFault(f"{STATE}/{place.file}", name, "is cut short or gone")
            for name in digests
            for place in places.get(name, [ChunkLocation("manifest.ocdbt", 0, 1 << 62)])
            if not self._is_complete(place)
        ]

    def _is_complete(self, place: ChunkLocation) -> bool:
        file = self.path / STATE / place.file
        return file.is_file() and file.stat().st_size >= place.offset + place.size

    def _read_error(self, name: str, error: Exception) -> DamageError:
        """What could not be read; the first line of what tensorstore said of it."""
        return self._damage_error(
            self.find_file(name), name, f"cannot be read ({_first_line(error)})"
        )

    def _damage_error(self, file: str, tensor: str | None, why: str) -> DamageError:
        return DamageError(self.path, CheckpointFault(file, tensor, why))


def empty_aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that jax does not copy to a CPU device: that begins at such an address."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)


def _first_line(error: Exception) -> str:
    """The first line of an error, without what tensorstore says of its own source."""
    return f"{error}".splitlines()[0].split(" [")[0]


def iter_chunks(tensor: ts.TensorStore) -> Iterator[Index]:
    """The parts of a tensor that are stored, and read, as one."""
    shape: tuple[int, ...] = tensor.shape
    stored = tensor.chunk_layout.read_chunk.shape or shape
    parts = [part or size for part, size in zip(stored, shape, strict=True)]
    steps = [range(0, size, part) for size, part in zip(shape, parts, strict=True)]
    for starts in product(*steps):
        yield tuple(
            slice(start, min(start + part, size))
            for start, part, size in zip(starts, parts, shape, strict=True)
        )
