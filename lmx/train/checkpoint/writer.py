"""Writes checkpoints through Orbax, with metadata that is computed meanwhile."""

import dataclasses
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals
from orbax.checkpoint.type_handlers import ArrayHandler, create_type_handler_registry

from lmx.core import distributed
from lmx.train.checkpoint.digest import Checksums, Index, add_checksums, checksum_part
from lmx.train.checkpoint.reader import METADATA, STATE, empty_aligned

FOLDER, FILE = METADATA.split("/")

# Orbax leaves such coroutines when it cannot write.
warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


class HostShard(NamedTuple):
    """A shard of an array in host memory, and its index in the array."""

    index: Index
    data: np.ndarray


HostShards = dict[str, list[HostShard]]  # by name of the array


class HostBuffers:
    """Copies of arrays on CPU devices, in memory that the next checkpoint reuses.

    On a CPU Orbax refers to the memory of arrays, and JAX does not donate such memory.
    Buffers are kept because new memory is slow to touch.
    """

    def __init__(self):
        self.buffers: dict[tuple[str, str], np.ndarray] = {}

    def copy(self, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Copies arrays on CPUs, returns others; earlier copies become invalid."""
        return {
            name: self._copy(name, array) if _is_on_cpu(array) else array
            for name, array in arrays.items()
        }

    def _copy(self, name: str, array: jax.Array) -> jax.Array:
        copies: dict[str, np.ndarray] = {}
        for shard in array.addressable_shards:
            index = f"{shard.index}"
            if index not in copies:
                copies[index] = self._get_buffer(name, index, shard.data)
                copies[index][...] = np.asarray(shard.data)
        shards = [
            jax.device_put(copies[f"{shard.index}"], shard.device)
            for shard in array.addressable_shards
        ]
        return jax.make_array_from_single_device_arrays(
            array.shape, array.sharding, shards
        )

    def _get_buffer(self, name: str, index: str, like: jax.Array) -> np.ndarray:
        buffer = self.buffers.get((name, index))
        if buffer is None or (buffer.shape, buffer.dtype) != (like.shape, like.dtype):
            buffer = self.buffers[name, index] = empty_aligned(like.shape, like.dtype)
        return buffer


def _is_on_cpu(array: jax.Array) -> bool:
    return next(iter(array.sharding.device_set)).platform == "cpu"


def copy_to_host(arrays: Mapping[str, jax.Array]) -> HostShards:
    """What this process writes: the first replica of each element, in host memory."""
    shards = {
        name: [shard for shard in array.addressable_shards if shard.replica_id == 0]
        for name, array in arrays.items()
    }
    for shard in (shard for found in shards.values() for shard in found):
        shard.data.copy_to_host_async()
    return {
        name: [HostShard(shard.index, np.asarray(shard.data)) for shard in found]
        for name, found in shards.items()
    }


def checksum_host_shards(
    arrays: Mapping[str, Any], shards: HostShards
) -> dict[str, Checksums]:
    """The checksums of what this process writes."""
    return {
        name: add_checksums(
            checksum_part(shard.data, shard.index, arrays[name].shape)
            for shard in found
        )
        for name, found in shards.items()
    }


class DeferredMetadata(ocp.AsyncCheckpointHandler):
    """Writes metadata that is computed while the arrays are being written."""

    async def async_save(
        self, directory: epath.Path, args: "DeferredMetadataArgs"
    ) -> list[Any]:
        """Computes it in the background in all processes; the leader writes it."""
        write = _write_deferred(directory, args.make_metadata)
        return [CommitFutureAwaitingContractedSignals(write)]

    def save(self, directory: epath.Path, args: "DeferredMetadataArgs") -> None:
        """The same, synchronously."""
        _write_metadata(directory, args.make_metadata())

    def restore(self, directory: epath.Path, args: Any = None) -> dict[str, Any]:
        """The metadata."""
        del args
        return json.loads((directory / FILE).read_text())


@ocp.args.register_with_handler(DeferredMetadata, for_save=True, for_restore=True)
@dataclasses.dataclass
class DeferredMetadataArgs(ocp.args.CheckpointArgs):
    """The function that computes the metadata."""

    make_metadata: Callable[[], dict[str, Any]]


async def _write_deferred(
    directory: epath.Path, make_metadata: Callable[[], dict[str, Any]]
) -> None:
    _write_metadata(directory, make_metadata())


def _write_metadata(directory: epath.Path, metadata: dict[str, Any]) -> None:
    if distributed.is_leader():
        (directory / FILE).write_text(json.dumps(metadata))


def make_checkpointer() -> ocp.AsyncCheckpointer:
    """Orbax's checkpointer for states.

    It does not compress: that saves at most a quarter of weights, needs as much memory
    as they have, and takes six times as long as writing. Each element is written by one
    process, from the one copy that a host has of it.
    """
    # The manager reports a failed save in one line, Orbax in four tracebacks.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    arrays = ArrayHandler(use_replica_parallel=False, enable_write_sharding_file=False)
    state = ocp.PyTreeCheckpointHandler(
        use_compression=False,
        type_handler_registry=create_type_handler_registry((jax.Array, arrays)),
    )
    handlers = {STATE: state, FOLDER: DeferredMetadata()}
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**handlers))


def make_save_args(
    arrays: Mapping[str, Any], make_metadata: Callable[[], dict[str, Any]]
) -> Any:
    """What Orbax saves."""
    metadata = {FOLDER: DeferredMetadataArgs(make_metadata)}
    return ocp.args.Composite(**{STATE: ocp.args.PyTreeSave(arrays)}, **metadata)
