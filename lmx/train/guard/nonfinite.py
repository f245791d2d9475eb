"""Losses and gradients that are no number: the end of a run, or a step not taken."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from lmx.config.registry import ConfigError, configurable
from lmx.core import distributed
from lmx.core.console import print_line
from lmx.data.dataset import DocumentSpan
from lmx.run.ledger import Ledger
from lmx.run.run_dir import RunDir
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.diloco import TrainStepFn
from lmx.train.guard.guard import (
    SKIPPED,
    FaultError,
    Guard,
    MetricWatcher,
    find_nonfinite,
)
from lmx.train.guard.skipped_data import load_skipped, to_data_step
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState

MAX_DOCUMENTS = 8  # documents of a batch that a message names


@configurable
@dataclass(frozen=True, kw_only=True)
class AbortOnNonFinite(Guard):
    """Ends the run where a number is not finite, before any such state is saved.

    Looks at the loss and at the norms of gradient, update and parameters; a norm that
    overflows counts as infinite.
    """

    def start(
        self, run: RunContext, directory: RunDir, checkpoints: CheckpointManager
    ) -> MetricWatcher:
        def look(done: int, values: Mapping[str, float]) -> None:
            if find_nonfinite(values):
                raise make_fault(run, directory, checkpoints, done, values)

        return MetricWatcher(look)


@configurable
@dataclass(frozen=True, kw_only=True)
class SkipNonFinite(Guard):
    """Leaves a step out whose loss or gradient is not finite.

    Parameters and all that the optimizer keeps stay as they were, to the bit; the step
    counts as done, and its data are not seen again. Its metric `skipped` is 1, and it
    stands in the ledger. Replicas that learn apart skip each for itself. A run that
    `AbortOnNonFinite` ended may go on so.

    Attributes:
        most: steps in a row; one more ends the run.
    """

    max_consecutive: int = 10

    def __post_init__(self):
        if self.max_consecutive < 1:
            raise ConfigError("SkipNonFinite.max_consecutive must be 1 or more.")

    def wrap_step(self, step_fn: TrainStepFn) -> TrainStepFn:
        def careful(recipe: Any, state: TrainState, *rows: Any) -> Any:
            after, metrics = step_fn(recipe, state, *rows)
            fine = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            return select_state(~fine, after, state, metrics)

        return careful

    def start(
        self, run: RunContext, directory: RunDir, checkpoints: CheckpointManager
    ) -> MetricWatcher:
        return make_skip_watcher(self.max_consecutive, run, directory, checkpoints)


def select_state(
    faulty: Bool[Array, ""], after: TrainState, before: TrainState, metrics: Metrics
) -> tuple[TrainState, Metrics]:
    """The state after the step; if that is faulty, the one before, one step on."""
    kept = jax.tree.map(lambda new, old: jnp.where(faulty, old, new), after, before)
    told = {SKIPPED: faulty.astype("float32")}
    return kept._replace(step=after.step), metrics | told


def make_skip_watcher(
    max_consecutive: int,
    run: RunContext,
    directory: RunDir,
    checkpoints: CheckpointManager,
) -> MetricWatcher:
    """Notes each step that was skipped; ends the run after too many in a row."""
    ledger, row = Ledger(directory), 0

    def look(done: int, values: Mapping[str, float]) -> None:
        nonlocal row
        row = row + 1 if values[SKIPPED] else 0
        if row > max_consecutive or find_nonfinite(values) and not row:
            raise make_fault(run, directory, checkpoints, done, values)
        if row:
            told = {name: f"{value:g}" for name, value in values.items()}
            ledger.record(done, "Skip", "done", **told)
        if row and distributed.is_leader():
            print_line(
                f"step {done} was left out: its loss is {values['loss']:g}, the norm of"
                f" its gradient {values['grad_norm']:g}"
            )

    return MetricWatcher(look)


def make_fault(
    run: RunContext,
    directory: RunDir,
    checkpoints: CheckpointManager,
    done: int,
    values: Mapping[str, float],
) -> FaultError:
    """The end of a run at a step; the state before it is on disk when this returns."""
    checkpoints.wait()
    there = max(checkpoints.list_steps(), default=0)
    bad = find_nonfinite(values).items()
    told = ", ".join(f"{name} {value:g}" for name, value in bad)
    told = told or f"a spike of its loss, {values['loss']:g}"
    step = to_data_step(load_skipped(directory.path), done - 1)
    found = run.data.locate_at(run.seed, step)
    shown = "; ".join(map(_format_origin, found[:MAX_DOCUMENTS]))
    more = f"; and {len(found) - MAX_DOCUMENTS} more" if found[MAX_DOCUMENTS:] else ""
    Ledger(directory).record(done, "Guard", "failed", reason=told)
    return FaultError(
        f"step {done} has {told}. Its batch: {shown}{more}. The newest state on disk is"
        f" that of step {there}: the same command meets the same step again, unless"
        " something is changed, as by Experiment.guard=@SkipNonFinite() --allow-change"
        " Experiment.guard."
    )


def _format_origin(origin: DocumentSpan) -> str:
    row, _, source, document, offset, length = origin
    if document is None or offset is None:
        return f"row {row} of {source}"
    return f"row {row} {source} document {document} [{offset}, {offset + length})"
