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

from lmx.core import process
from lmx.train.checkpoint.digest import Sums, of_part
from lmx.train.checkpoint.reader import META, STATE, Index

# Orbax leaves such behind when it cannot write.
warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


class Part(NamedTuple):
    """A part of an array in the memory of this host, and where it is in the whole."""

    index: Index
    data: np.ndarray


Parts = dict[str, list[Part]]  # by name of the array


def on_host(named: dict[str, Any]) -> Parts:
    """What this process has to write, copied off its devices; on a CPU, as it lies.

    Each element is written by the process that has its first replica. Whoever consumes
    the arrays afterwards leaves the copy as it is: jax does not write over memory that
    a NumPy array looks at.
    """
    shards = {
        name: [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
        for name, leaf in named.items()
    }
    for shard in (each for found in shards.values() for each in found):
        shard.data.copy_to_host_async()
    return {
        name: [Part(shard.index, np.asarray(shard.data)) for shard in found]
        for name, found in shards.items()
    }


def sums_of(named: dict[str, Any], parts: Parts) -> dict[str, Sums]:
    """The sums of what this process has to write."""
    return {
        name: sum(
            (of_part(part.data, part.index, named[name].shape) for part in found),
            start=np.zeros(2, np.uint64),
        )
        for name, found in parts.items()
    }


class Late(ocp.AsyncCheckpointHandler):
    """Writes facts that are found out while the arrays are being written."""

    async def async_save(self, directory: epath.Path, args: "LateSave") -> list[Any]:
        """Asks for the facts beside the training, everywhere; the first writes."""
        return [CommitFutureAwaitingContractedSignals(_late(directory, args.ask))]

    def save(self, directory: epath.Path, args: "LateSave") -> None:
        """What `async_save` does, at once."""
        _put(directory, args.ask())

    def restore(self, directory: epath.Path, args: Any = None) -> dict[str, Any]:
        """The facts."""
        del args
        return json.loads((directory / Path(META).name).read_text())


@ocp.args.register_with_handler(Late, for_save=True, for_restore=True)
@dataclasses.dataclass
class LateSave(ocp.args.CheckpointArgs):
    """What to ask once the arrays are on their way."""

    ask: Callable[[], dict[str, Any]]


async def _late(directory: epath.Path, ask: Callable[[], dict[str, Any]]) -> None:
    _put(directory, ask())


def _put(directory: epath.Path, facts: dict[str, Any]) -> None:
    if process.first():
        (directory / Path(META).name).write_text(json.dumps(facts))


def orbax() -> ocp.AsyncCheckpointer:
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
    folders = {STATE: state, Path(META).parent.name: Late()}
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**folders))


def args(named: dict[str, Any], ask: Callable[[], dict[str, Any]]) -> Any:
    """What Orbax is told to save."""
    late = {Path(META).parent.name: LateSave(ask)}
    return ocp.args.Composite(**{STATE: ocp.args.PyTreeSave(named)}, **late)
