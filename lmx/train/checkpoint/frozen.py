"""The frozen part of a state: made again when a run resumes, and held to its digest."""

import dataclasses
import itertools

import jax
from jaxtyping import PyTree

from lmx.config.registry import require
from lmx.core import distributed
from lmx.core.sharding import Mesh
from lmx.models.params import flatten_params
from lmx.train.checkpoint.digest import (
    checksum_parts,
    combine_digests,
    flatten_by_path,
    format_digest,
    get_local_parts,
)
from lmx.train.checkpoint.init_from import InitialState, read_init_from
from lmx.train.checkpoint.manager import CheckpointManager, add_reports
from lmx.train.checkpoint.run_weights import RunWeights
from lmx.train.loss import NextToken
from lmx.train.step import Frozen, TrainState

KEY = "frozen"  # in the metadata of a checkpoint

_message_ids = itertools.count()  # equal in all processes


def digest_arrays(tree: PyTree) -> str:
    """One digest of all arrays, which no mesh changes."""
    arrays = flatten_by_path(tree)
    parts = get_local_parts(arrays).items()
    sums = {name: checksum_parts(part, arrays[name].shape) for name, part in parts}
    message = f"frozen/{next(_message_ids)}"
    totals = add_reports(distributed.gather_to_leader(message, sums) or [])
    digests = {n: format_digest(n, arrays[n], total) for n, total in totals.items()}
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


def load_frozen_params(weights: RunWeights) -> dict[str, jax.Array]:
    """The frozen parameters of a run by path, on one device."""
    experiment = weights.config.build()
    if "*" in getattr(experiment, "trainable", "*"):
        return {}
    experiment = dataclasses.replace(
        experiment, mesh=Mesh(data=1), local_sgd=None, loss=NextToken()
    )
    program = experiment.build_program(jax.devices()[:1])
    initial = InitialState(experiment.init_from, program, read_init_from(weights.path))
    frozen = initial.load_frozen()
    check_frozen(frozen, weights.checkpoints, weights.step)
    return {
        path: jax.device_put(leaf, jax.devices()[0])
        for path, leaf in flatten_params(frozen.params).items()
    }
