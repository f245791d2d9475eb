"""The frozen part of a state: made again when a run resumes, and held to its digest."""

import itertools

import jax
from jaxtyping import PyTree

from lmx.config.registry import require
from lmx.core import distributed
from lmx.train.checkpoint.digest import (
    combine_digests,
    flatten_by_path,
    get_local_parts,
)
from lmx.train.checkpoint.manager import CheckpointManager, digest_shards
from lmx.train.step import Frozen, TrainState

KEY = "frozen"  # in the metadata of a checkpoint

_message_ids = itertools.count()  # equal in all processes


def digest_arrays(tree: PyTree) -> str:
    """One digest of all arrays, which no mesh changes."""
    arrays = flatten_by_path(tree)
    message = f"frozen/{next(_message_ids)}"
    digests = digest_shards(arrays, get_local_parts(arrays), message)
    return distributed.broadcast_from_leader(lambda: combine_digests(digests))


def digest_frozen(frozen: Frozen) -> dict[str, str]:
    """The digest of each part that there is."""
    parts = frozen._asdict().items()
    return {name: digest_arrays(x) for name, x in parts if jax.tree.leaves(x)}


def check_frozen(frozen: Frozen, checkpoints: CheckpointManager, step: int) -> None:
    """Refuses another frozen part than that of a checkpoint."""
    recorded = checkpoints.read_metadata(step)["extra"].get(KEY, {})
    for name, digest in digest_frozen(frozen).items():
        require(
            recorded.get(name) == digest,
            f"the frozen {'parameters' if name == 'params' else 'arrays of the loss'}"
            f" are not those of checkpoint {step} of {checkpoints.folder}: restore the"
            " files that they come from. Random ones are the same to the bit on the"
            " kind of device, and with the versions, that made them.",
        )


def attach_frozen(
    state: TrainState, frozen: Frozen, checkpoints: CheckpointManager
) -> TrainState:
    """A restored state with its frozen part, which is checked."""
    check_frozen(frozen, checkpoints, int(state.step))
    return state._replace(frozen=frozen)
