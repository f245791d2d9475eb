"""Reads a checkpoint: its metadata, its tensors, and damage to them."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorstore as ts

from lmx.config.json_object import check_kinds, parse_object
from lmx.config.registry import ConfigError, require
from lmx.core.hardware import empty_aligned
from lmx.run.run_dir import SCHEMA, check_schema
from lmx.train.checkpoint.digest import (
    Checksums,
    Index,
    checksum_parts,
    combine_digests,
    format_digest,
)

METADATA, STATE = "metadata/metadata.json", "state"  # below the folder of a step
KINDS = {  # the types of the metadata
    "step": int,
    "run_id": str | None,
    "lineage": tuple[Mapping[str, Any], ...],
    "extra": Mapping[str, Any],
    "root": str,
    "digests": Mapping[str, str],
}
MISMATCH = "is not what was saved"
PARALLEL_TENSORS = 4  # tensors to read at the same time
CACHE_BYTES = 32 << 20  # for the names of tensors and their locations
PIECE_BYTES = 1 << 20  # bytes to read at a time, so that they stay in a cache


class CheckpointFault(NamedTuple):
    """Damage to a file of a checkpoint; `tensor` is None if it affects all of them."""

    file: str
    tensor: str | None
    reason: str

    def __str__(self) -> str:
        tensor = f"{self.tensor} " if self.tensor else ""
        return f"{self.file}: {tensor}{self.reason}"


class ChunkLocation(NamedTuple):
    """Bytes of a file below the folder of the tensors.

    `chunk` is the chunk of a tensor that is stored there, as in `0.3`; it is empty for
    chunks that are stored in a node of the tree.
    """

    file: str
    offset: int
    size: int
    chunk: str = ""


class DamageError(ConfigError):
    """A checkpoint on disk is not what was saved: which files and tensors, and why."""

    def __init__(self, path: Path, *faults: CheckpointFault):
        super().__init__("\n".join(f"{path}/{fault}" for fault in faults))
        self.path, self.faults = path, faults


class CheckpointReader:
    """The checkpoint in the folder of one step.

    Reads Orbax's files, which are arrays of Zarr in an OCDBT key-value store, without
    Orbax: no process waits for another, tensors are read one after the other, and
    checksums are of the bytes that were read.
    """

    def __init__(self, path: Path):
        self.path = path
        self.context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})

    def read_metadata(self) -> dict[str, Any]:
        """Schema, step, run ID, parent, lineage, extra, digests and their `root`."""
        try:
            content = (self.path / METADATA).read_bytes()
            metadata = parse_object(content, METADATA, {"schema": int})
            if metadata["schema"] == SCHEMA:
                check_kinds(metadata, KINDS, METADATA)
        except FileNotFoundError:
            if (self.path / "meta").is_dir():  # as in schema 3
                check_schema(self.path, 3)
            raise self._damage(METADATA, None, "is missing") from None
        except (OSError, ConfigError) as error:
            raise self._damage(METADATA, None, f"cannot be read ({error})") from None
        check_schema(self.path, metadata["schema"])
        if combine_digests(metadata["digests"]) != metadata["root"]:
            raise self._damage(METADATA, None, "does not match its root digest")
        return metadata

    def open_tensor(self, name: str) -> ts.TensorStore:
        """One tensor, without reading its elements."""
        kvstore = {
            "driver": "ocdbt",
            "base": {"driver": "file", "path": f"{self.path / STATE}/"},
            "path": f"{name}/",
        }
        spec = {"driver": "zarr", "kvstore": kvstore}
        try:
            return ts.open(spec, context=self.context).result()
        except (ValueError, OSError) as error:
            raise self._read_error(name, error) from None

    def read_part(self, name: str, tensor: ts.TensorStore, index: Index) -> np.ndarray:
        """The part of a tensor at that index, in memory that a CPU device can alias."""
        part = tensor[index]
        array = empty_aligned(part.shape, part.dtype.numpy_dtype)
        try:
            ts.array(array).write(part).result()
            return array
        except (ValueError, OSError) as error:
            raise self._read_error(name, error) from None

    def load(self, abstract: Mapping[str, Any]) -> dict[str, tuple[jax.Array, Any]]:
        """Tensors as described, and checksums of what this process read of them."""
        wide = jax.dtypes.canonicalize_dtype(float) == "float64"  # in this thread

        def load(name: str) -> tuple[jax.Array, Checksums]:
            with jax.enable_x64(wide):
                return self._load_tensor(name, abstract[name])

        with ThreadPoolExecutor(PARALLEL_TENSORS) as pool:
            return dict(zip(abstract, pool.map(load, abstract), strict=True))

    def _load_tensor(self, name: str, abstract: Any) -> tuple[jax.Array, Checksums]:
        """One tensor on its devices; each part is read once."""
        tensor = self.open_tensor(name)
        require(
            tensor.shape == tuple(abstract.shape),
            f"{name} has shape {tensor.shape} in {self.path}, and {abstract.shape}"
            " in this model: it is another model.",
        )
        devices = abstract.sharding.addressable_devices_indices_map(tensor.shape)
        indices = {f"{index}": index for index in devices.values()}
        parts = {key: self.read_part(name, tensor, i) for key, i in indices.items()}
        shards = [
            jax.device_put(parts[f"{i}"].astype(abstract.dtype, copy=False), device)
            for device, i in devices.items()
        ]
        array = jax.make_array_from_single_device_arrays(
            tensor.shape, abstract.sharding, shards
        )
        firsts = [s.index for s in array.addressable_shards if s.replica_id == 0]
        read = ((index, parts[f"{index}"]) for index in firsts)
        return array, checksum_parts(read, tensor.shape)

    def compute_checksums(
        self, parts: Mapping[str, Sequence[Index] | None]
    ) -> dict[str, Checksums]:
        """The checksums of these parts of tensors; None: of all of a tensor."""
        sums = {}
        for name, indices in parts.items():
            tensor = self.open_tensor(name)
            pieces = (
                piece
                for index in (iter_chunks(tensor) if indices is None else indices)
                for piece in self._iter_pieces(name, tensor, index)
            )
            sums[name] = checksum_parts(pieces, tensor.shape)
        return sums

    def _iter_pieces(
        self, name: str, tensor: ts.TensorStore, index: Index
    ) -> Iterator[tuple[Index, np.ndarray]]:
        """Reads a part in blocks of rows that stay in a cache.

        A part that is one chunk is read directly from its file, in a fifth of the time
        that tensorstore takes, since little new memory is touched.
        """
        shape, dtype = tensor[index].shape, tensor.dtype.numpy_dtype
        place = self._find_raw_chunk(name, tensor, index)
        if place is None:
            yield index, self.read_part(name, tensor, index)
            return
        row = place.size // shape[0]
        rows = max(1, PIECE_BYTES // row)
        begin, end, _ = index[0].indices(tensor.shape[0])
        try:
            with open(self.path / STATE / place.file, "rb") as file:
                file.seek(place.offset)
                for first in range(begin, end, rows):
                    count = min(rows, end - first)
                    piece = np.fromfile(file, np.uint8, count * row).view(dtype)
                    inner = (slice(first, first + count), *index[1:])
                    yield inner, piece.reshape(count, *shape[1:])
        except (ValueError, OSError) as error:  # the former if the file is too short
            raise self._read_error(name, error) from None

    def _find_raw_chunk(
        self, name: str, tensor: ts.TensorStore, index: Index
    ) -> ChunkLocation | None:
        """Where a file holds the elements of a part as raw bytes; None if none does."""
        zarr, part = tensor.spec().to_json()["metadata"], tensor[index]
        sizes, encoded = zarr["chunks"], zarr["compressor"] or zarr["filters"]
        if encoded or zarr["order"] != "C" or not sizes or [*part.shape] != sizes:
            return None
        origin = zip(part.domain.origin, sizes, strict=True)
        chunk = ".".join(str(begin // size) for begin, size in origin)
        expected = (chunk, part.size * tensor.dtype.numpy_dtype.itemsize)
        places = self.chunk_locations.get(name, ())
        return next((p for p in places if (p.chunk, p.size) == expected), None)

    def verify(self) -> list[CheckpointFault]:
        """Reads the whole checkpoint; returns the tensors that differ from the save."""
        try:
            digests = self.read_metadata()["digests"]
        except DamageError as error:
            return list(error.faults)
        with ThreadPoolExecutor(PARALLEL_TENSORS) as pool:
            faults = pool.map(self._verify_tensor, digests, digests.values())
        return [fault for fault in faults if fault]

    def _verify_tensor(self, name: str, digest: str) -> CheckpointFault | None:
        try:
            sums = self.compute_checksums({name: None})[name]
        except DamageError as error:
            return error.faults[0]
        if self.format_digest(name, sums) == digest:
            return None
        return CheckpointFault(self.find_file(name), name, MISMATCH)

    def format_digest(self, name: str, sums: Checksums) -> str:
        """The digest of a tensor with these checksums."""
        tensor = self.open_tensor(name)
        dtype = tensor.dtype.numpy_dtype
        return format_digest(name, jax.ShapeDtypeStruct(tensor.shape, dtype), sums)

    def find_file(self, name: str) -> str:
        """The first file of a tensor, or their folder if it cannot be found."""
        try:
            return f"{STATE}/{self.chunk_locations[name][0].file}"
        except (ValueError, OSError, KeyError, IndexError):
            return STATE

    @cached_property
    def chunk_locations(self) -> dict[str, list[ChunkLocation]]:
        """The locations of the chunks of each tensor, from the tree of OCDBT."""
        base = {"driver": "file", "path": f"{self.path / STATE}/"}
        store = ts.KvStore.open(base).result()
        root = ts.ocdbt.dump(store).result()["versions"][-1]["root"]["location"]
        nodes, places = [root], {}
        for location in nodes:
            for entry in ts.ocdbt.dump(store, node=location).result()["entries"]:
                name, _, chunk = entry["key"].decode().rpartition("/")
                if "location" in entry:
                    nodes.append(entry["location"])
                elif chunk != ".zarray":
                    indirect = entry.get("indirect_value")
                    _, folder, file, offset, size = (indirect or location).split(":")
                    place = ChunkLocation(folder + file, int(offset), int(size))
                    if indirect:
                        place = place._replace(chunk=chunk)
                    places.setdefault(name, []).append(place)
        return places

    def check_sizes(self) -> list[CheckpointFault]:
        """Missing and truncated files, by their sizes alone."""
        try:
            digests, places = self.read_metadata()["digests"], self.chunk_locations
        except DamageError as error:
            return list(error.faults)
        except (ValueError, OSError) as error:
            reason = f"cannot be read ({_first_line(error)})"
            return [CheckpointFault(STATE, None, reason)]
        missing = [ChunkLocation("manifest.ocdbt", 0, 1 << 62)]
        return [
            CheckpointFault(f"{STATE}/{place.file}", name, "is truncated or missing")
            for name in digests
            for place in places.get(name, missing)
            if not self._is_complete(place)
        ]

    def _is_complete(self, place: ChunkLocation) -> bool:
        file = self.path / STATE / place.file
        return file.is_file() and file.stat().st_size >= place.offset + place.size

    def _read_error(self, name: str, error: Exception) -> DamageError:
        reason = f"cannot be read ({_first_line(error)})"
        return self._damage(self.find_file(name), name, reason)

    def _damage(self, file: str, tensor: str | None, reason: str) -> DamageError:
        return DamageError(self.path, CheckpointFault(file, tensor, reason))


def iter_chunks(tensor: ts.TensorStore) -> Iterator[Index]:
    """The indices of the parts that a tensor is stored in."""
    shape: tuple[int, ...] = tensor.shape
    stored = tensor.chunk_layout.read_chunk.shape or shape
    sizes = [size or full for size, full in zip(stored, shape, strict=True)]
    starts = [range(0, full, size) for size, full in zip(sizes, shape, strict=True)]
    for origin in product(*starts):
        yield tuple(
            slice(start, min(start + size, full))
            for start, size, full in zip(origin, sizes, shape, strict=True)
        )


def _first_line(error: Exception) -> str:
    """The first line of an error, without the source location of tensorstore."""
    return f"{error}".splitlines()[0].split(" [")[0]
