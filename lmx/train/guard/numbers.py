"""Losses and gradients that are no number: the end of a run, or a step not taken."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from lmx.config.names import ConfigError, configurable
from lmx.core import process
from lmx.data.progress import say
from lmx.data.rows.numbered import documents
from lmx.data.rows.packing import Origin
from lmx.train.checkpoint.checkpoints import Checkpoints
from lmx.train.guard.gaps import data_step, gaps_of
from lmx.train.guard.guard import SKIPPED, FaultError, Guard, Watch, wrong
from lmx.train.optim.outer import Take
from lmx.train.record.directory import Directory
from lmx.train.record.ledger import Ledger
from lmx.train.run import Run
from lmx.train.step import Metrics, TrainState

SHOWN = 8  # documents of a batch that a message names


@configurable
@dataclass(frozen=True, kw_only=True)
class Abort(Guard):
    """Ends the run where a number is not finite, before any such state is saved.

    Looks at the loss and at the norms of gradient, update and parameters; a norm that
    overflows counts as infinite.
    """

    def start(self, run: Run, directory: Directory, checkpoints: Checkpoints) -> Watch:
        def look(done: int, values: Mapping[str, float]) -> None:
            if wrong(values):
                raise fault(run, directory, checkpoints, done, values)

        return Watch(look)


@configurable
@dataclass(frozen=True, kw_only=True)
class Skip(Guard):
    """Leaves a step out whose loss or gradient is not finite.

    Parameters and all that the optimizer keeps stay as they were, to the bit; the step
    counts as done, and its data are not seen again. Its metric `skipped` is 1, and it
    stands in the ledger. Replicas that learn apart skip each for itself. A run that
    `Abort` ended may go on so.

    Attributes:
        most: steps in a row; one more ends the run.
    """

    most: int = 10

    def __post_init__(self):
        if self.most < 1:
            raise ConfigError("Skip.most must be 1 or more.")

    def step(self, take: Take) -> Take:
        def careful(recipe: Any, state: TrainState, *rows: Any) -> Any:
            after, metrics = take(recipe, state, *rows)
            fine = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            return unless(~fine, after, state, metrics)

        return careful

    def start(self, run: Run, directory: Directory, checkpoints: Checkpoints) -> Watch:
        return skipping(self.most, run, directory, checkpoints)


def unless(
    faulty: Bool[Array, ""], after: TrainState, before: TrainState, metrics: Metrics
) -> tuple[TrainState, Metrics]:
    """The state after the step; if that is faulty, the one before, one step on."""
    kept = jax.tree.map(lambda new, old: jnp.where(faulty, old, new), after, before)
    told = {SKIPPED: faulty.astype("float32")}
    return kept._replace(step=after.step), metrics | told


def skipping(
    most: int, run: Run, directory: Directory, checkpoints: Checkpoints
) -> Watch:
    """Notes each step that was skipped; ends the run after too many in a row."""
    ledger, row = Ledger(directory), 0

    def look(done: int, values: Mapping[str, float]) -> None:
        nonlocal row
        row = row + 1 if values[SKIPPED] else 0
        if row > most or wrong(values) and not row:
            raise fault(run, directory, checkpoints, done, values)
        if row:
            told = {name: f"{value:g}" for name, value in values.items()}
            ledger.note(done, "Skip", "done", **told)
        if row and process.first():
            say(
                f"step {done} was left out: its loss is {values['loss']:g}, the norm of"
                f" its gradient {values['grad_norm']:g}"
            )

    return Watch(look)


def fault(
    run: Run,
    directory: Directory,
    checkpoints: Checkpoints,
    done: int,
    values: Mapping[str, float],
) -> FaultError:
    """The end of a run at a step; the state before it is on disk when this returns."""
    checkpoints.wait()
    there = max(checkpoints.steps(), default=0)
    bad = wrong(values).items()
    told = ", ".join(f"{name} {value:g}" for name, value in bad)
    told = told or f"a spike of its loss, {values['loss']:g}"
    step = data_step(gaps_of(directory.path), done - 1)
    found = documents(run.data, run.seed, step)
    shown = "; ".join(map(_shown, found[:SHOWN]))
    more = f"; and {len(found) - SHOWN} more" if found[SHOWN:] else ""
    Ledger(directory).note(done, "Guard", "failed", why=told)
    return FaultError(
        f"step {done} has {told}. Its batch: {shown}{more}. The newest state on disk is"
        f" that of step {there}: the same command meets the same step again, unless"
        " something is changed, as by Experiment.guard=@Skip() --accept"
        " Experiment.guard."
    )


def _shown(origin: Origin) -> str:
    row, _, source, document, offset, length = origin
    if document is None or offset is None:
        return f"row {row} of {source}"
    return f"row {row} {source} document {document} [{offset}, {offset + length})"
