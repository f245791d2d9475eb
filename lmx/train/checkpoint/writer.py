"""Writes checkpoints through Orbax, with metadata that is computed meanwhile."""

import dataclasses
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.type_handlers import ArrayHandler, create_type_handler_registry

from lmx.core.hardware import empty_aligned
from lmx.train.checkpoint.reader import METADATA, STATE

FOLDER, FILE = METADATA.split("/")

# Orbax leaves such coroutines when it cannot write.
warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


class HostBuffers:
    """Copies of arrays on CPU devices, in memory that the next checkpoint reuses.

    On a CPU Orbax refers to the memory of arrays, and JAX does not donate such memory.
    Buffers are kept because new memory is slow to touch.
    """

    def __init__(self):
        # By name of the array, index, shape and dtype of the shard.
        self.buffers: dict[tuple[str, str, Any, Any], np.ndarray] = {}

    def copy(self, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Copies arrays on CPUs, returns others; earlier copies become invalid."""
        return {name: self._copy(name, array) for name, array in arrays.items()}

    def _copy(self, name: str, array: jax.Array) -> jax.Array:
        if next(iter(array.sharding.device_set)).platform != "cpu":
            return array
        copied, shards = set(), []
        for shard in array.addressable_shards:
            key = (name, f"{shard.index}", shard.data.shape, shard.data.dtype)
            if key not in self.buffers:
                self.buffers[key] = empty_aligned(*key[2:])
            if key not in copied:
                self.buffers[key][...] = np.asarray(shard.data)
                copied.add(key)
            shards.append(jax.device_put(self.buffers[key], shard.device))
        return jax.make_array_from_single_device_arrays(
            array.shape, array.sharding, shards
        )


class DeferredMetadata(ocp.JsonCheckpointHandler):
    """All processes compute metadata while arrays are written; one writes it."""

    async def _save_fn(self, x: Callable[[], Any], directory: epath.Path) -> None:
        await super()._save_fn(x(), directory)


@ocp.args.register_with_handler(DeferredMetadata, for_save=True, for_restore=True)
@dataclasses.dataclass
class DeferredMetadataArgs(ocp.args.CheckpointArgs):
    """The function that computes the metadata."""

    item: Callable[[], dict[str, Any]]


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
    handlers = {STATE: state, FOLDER: DeferredMetadata(FILE)}
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**handlers))


def make_save_args(
    arrays: Mapping[str, Any], make_metadata: Callable[[], dict[str, Any]]
) -> Any:
    """What Orbax saves."""
    metadata = {FOLDER: DeferredMetadataArgs(make_metadata)}
    return ocp.args.Composite(**{STATE: ocp.args.PyTreeSave(arrays)}, **metadata)
