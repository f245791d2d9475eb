"""How a state gets on disk through Orbax, with what is known of it when it is there."""

import dataclasses
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals
from orbax.checkpoint.type_handlers import ArrayHandler, create_type_handler_registry

from lmx.core import distributed
from lmx.train.checkpoint.digest import Checksums, checksum_part
from lmx.train.checkpoint.reader import METADATA, STATE, Index, empty_aligned

# Orbax leaves such behind when it cannot write.
warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


class HostShard(NamedTuple):
    """A part of an array in the memory of this host, and where it is in the whole."""

    index: Index
    data: np.ndarray


HostShards = dict[str, list[HostShard]]  # by name of the array


class HostBuffers:
    """Arrays that nobody consumes: of those on CPUs copies, of others themselves.

    A CPU's arrays are looked at where they lie, and jax does not write over what is
    looked at: the next step would find other memory for them, a page at a time. The
    memory of copies is kept for the next ones, since new memory is slow to touch.
    """

    def __init__(self):
        self.arrays: dict[tuple[str, str], np.ndarray] = {}

    def copy(self, named: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The arrays, once those of the call before are not looked at any more."""
        return {
            name: self._copy_array(name, leaf) if _get_platform(leaf) == "cpu" else leaf
            for name, leaf in named.items()
        }

    def _copy_array(self, name: str, leaf: jax.Array) -> jax.Array:
        parts: dict[str, np.ndarray] = {}
        for shard in leaf.addressable_shards:
            index = str(shard.index)
            if index not in parts:
                parts[index] = self._get_buffer(name, index, shard.data)
                parts[index][...] = np.asarray(shard.data)
        found = [
            jax.device_put(parts[str(shard.index)], shard.device)
            for shard in leaf.addressable_shards
        ]
        shape, where = leaf.shape, leaf.sharding
        return jax.make_array_from_single_device_arrays(shape, where, found)

    def _get_buffer(self, name: str, index: str, like: jax.Array) -> np.ndarray:
        kept = self.arrays.get((name, index))
        if kept is None or (kept.shape, kept.dtype) != (like.shape, like.dtype):
            kept = self.arrays[name, index] = empty_aligned(like.shape, like.dtype)
        return kept


def _get_platform(leaf: jax.Array) -> str:
    return next(iter(leaf.sharding.device_set)).platform


def copy_to_host(named: dict[str, jax.Array]) -> HostShards:
    """What this process has to write, copied off its devices; on a CPU, as it lies.

    Each element is written by the process that has its first replica.
    """
    shards = {
        name: [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
        for name, leaf in named.items()
    }
    for shard in (each for found in shards.values() for each in found):
        shard.data.copy_to_host_async()
    return {
        name: [HostShard(shard.index, np.asarray(shard.data)) for shard in found]
        for name, found in shards.items()
    }


def checksum_shards(named: dict[str, Any], parts: HostShards) -> dict[str, Checksums]:
    """The sums of what this process has to write."""
    return {
        name: sum(
            (checksum_part(part.data, part.index, named[name].shape) for part in found),
            start=np.zeros(2, np.uint64),
        )
        for name, found in parts.items()
    }


class DeferredMetadata(ocp.AsyncCheckpointHandler):
    """Writes facts that are found out while the arrays are being written."""

    async def async_save(
        self, directory: epath.Path, args: "DeferredMetadataArgs"
    ) -> list[Any]:
        """Asks for the facts beside the training, everywhere; the first writes."""
        return [
            CommitFutureAwaitingContractedSignals(
                _write_deferred(directory, args.make_metadata)
            )
        ]

    def save(self, directory: epath.Path, args: "DeferredMetadataArgs") -> None:
        """What `async_save` does, at once."""
        _write_metadata(directory, args.make_metadata())

    def restore(self, directory: epath.Path, args: Any = None) -> dict[str, Any]:
        """The facts."""
        del args
        return json.loads((directory / Path(METADATA).name).read_text())


@ocp.args.register_with_handler(DeferredMetadata, for_save=True, for_restore=True)
@dataclasses.dataclass
class DeferredMetadataArgs(ocp.args.CheckpointArgs):
    """What to ask once the arrays are on their way."""

    make_metadata: Callable[[], dict[str, Any]]


async def _write_deferred(
    directory: epath.Path, ask: Callable[[], dict[str, Any]]
) -> None:
    _write_metadata(directory, ask())


def _write_metadata(directory: epath.Path, facts: dict[str, Any]) -> None:
    if distributed.is_leader():
        (directory / Path(METADATA).name).write_text(json.dumps(facts))


def make_checkpointer() -> ocp.AsyncCheckpointer:
    """The writer of states.

    Not compressed: a quarter at most is gained on weights, and compressing takes as
    much memory again as they do and six times as long as writing them. Each element is
    written by one process and from the one copy of it that there is on a host.
    """
    # A failed save is told in one line by who asked for it, and not in four tracebacks.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    arrays = ArrayHandler(use_replica_parallel=False, enable_write_sharding_file=False)
    state = ocp.PyTreeCheckpointHandler(
        use_compression=False,
        type_handler_registry=create_type_handler_registry((jax.Array, arrays)),
    )
    folders = {STATE: state, Path(METADATA).parent.name: DeferredMetadata()}
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**folders))


def make_save_args(named: dict[str, Any], ask: Callable[[], dict[str, Any]]) -> Any:
    """What Orbax is told to save."""
    late = {Path(METADATA).parent.name: DeferredMetadataArgs(ask)}
    return ocp.args.Composite(**{STATE: ocp.args.PyTreeSave(named)}, **late)
