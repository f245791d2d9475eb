"""Guards against non-finite numbers, and the data that a run skips."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from lmx.config.registry import Positive, configurable
from lmx.core import distributed
from lmx.core.batch import AnyBatch
from lmx.core.console import print_line
from lmx.data.schedule import BatchSchedule
from lmx.run.run_dir import RunDir, read_ledger
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.policy import CheckpointPolicy
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState, TrainStepFn

Init = Callable[..., TrainState]
MetricCheck = Callable[[int, Mapping[str, float]], None]  # of a step and its metrics
SkippedRanges = Sequence[tuple[int, int]]  # sorted, disjoint [begin, end) of data steps
REWIND = "Rewind"  # name in the ledger
SKIPPED, SPIKE = "skipped", "spike"  # metrics of guards: above 0 if that happened
FINITE_METRICS = ("loss", "grad_norm", "update_norm", "param_norm")
WATCHED_METRICS = (*FINITE_METRICS, SKIPPED, SPIKE)


class FaultError(Exception):
    """Training must stop; `nonfinite_step` has a number that is not finite, if any."""

    def __init__(
        self, reason: str, exit_status: int = 1, nonfinite_step: int | None = None
    ):
        super().__init__(reason)
        self.exit_status, self.nonfinite_step = exit_status, nonfinite_step


@dataclass(frozen=True)
class GuardContext:
    """What the metric check of a guard may use."""

    run_dir: RunDir
    checkpoints: CheckpointManager

    def make_fault(self, step: int, values: Mapping[str, float]) -> FaultError:
        """An error that names the step's fault and what to do; saves are finished."""
        self.checkpoints.wait()
        saved = self.checkpoints.list_steps()
        newest = f"the checkpoint of step {saved[-1]}" if saved else "nothing"
        bad = [f"{name} {x:g}" for name, x in find_nonfinite(values).items()]
        reason = ", ".join(bad) or f"a spike of its loss, {values['loss']:g}"
        self.run_dir.record_hook(step, "Guard", "failed", reason=reason)
        return FaultError(
            f"step {step} has {reason}. Saved before it: {newest}."
            f" lmx inspect {self.run_dir.path} --step {step} shows the documents of its"
            " batch with the loss of each token. The same command fails at the same"
            " step again: change something, as by Experiment.guard=@SkipNonFinite()"
            " --allow-change Experiment.guard.",
            nonfinite_step=step if bad else None,
        )


class Guard(ABC):
    """A policy for steps with non-finite numbers or loss spikes."""

    def check(self, schedule: BatchSchedule, checkpoint: CheckpointPolicy) -> None:
        """Refuses a run that this guard does not support."""
        del schedule, checkpoint

    def wrap_init(self, init: Init) -> Init:
        """Adds the state of the guard to the state of step 0."""
        return init

    def wrap_step(self, step_fn: TrainStepFn) -> TrainStepFn:
        """Adds to a step what the guard does on the devices."""
        return step_fn

    @abstractmethod
    def build(self, context: GuardContext) -> MetricCheck:
        """The check of `WATCHED_METRICS` of each step, which may end the run."""


@configurable
@dataclass(frozen=True, kw_only=True)
class AbortOnNonFinite(Guard):
    """Ends the run at a non-finite number, before such a state is saved.

    Checks the loss and the norms of gradient, update and parameters; a norm that
    overflows counts as infinite.
    """

    def build(self, context: GuardContext) -> MetricCheck:
        def check(step: int, values: Mapping[str, float]) -> None:
            if find_nonfinite(values):
                raise context.make_fault(step, values)

        return check


@configurable
@dataclass(frozen=True, kw_only=True)
class SkipNonFinite(Guard):
    """Skips the update of a step with a non-finite loss or gradient.

    Parameters and optimizer state keep their bits; the step counts as done, has the
    metric `skipped`, and is recorded in the ledger. Replicas of `DiLoCo` skip
    independently. A run that `AbortOnNonFinite` ended can resume with this guard.

    Attributes:
        max_consecutive: steps in a row; one more ends the run.
    """

    max_consecutive: Positive[int] = 10

    def wrap_step(self, step_fn: TrainStepFn) -> TrainStepFn:
        def step(config: Any, state: TrainState, *rows: Any) -> Any:
            new, metrics = step_fn(config, state, *rows)
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            return select_state(~finite, new, state, metrics)

        return step

    def build(self, context: GuardContext) -> MetricCheck:
        consecutive = 0

        def check(step: int, values: Mapping[str, float]) -> None:
            nonlocal consecutive
            consecutive = consecutive + 1 if values[SKIPPED] else 0
            if consecutive > self.max_consecutive or (
                find_nonfinite(values) and not consecutive
            ):
                raise context.make_fault(step, values)
            if consecutive:
                shown = {name: f"{value:g}" for name, value in values.items()}
                context.run_dir.record_hook(step, "Skip", "done", **shown)
                if distributed.is_leader():
                    print_line(
                        f"step {step} was skipped: its loss is {shown['loss']}, its"
                        f" gradient norm {shown['grad_norm']}"
                    )

        return check


def select_state(
    skip: Bool[Array, ""], new: TrainState, old: TrainState, metrics: Metrics
) -> tuple[TrainState, Metrics]:
    """The new state, or the old one at the next step; adds the metric `skipped`."""
    kept = jax.tree.map(lambda new, old: jnp.where(skip, old, new), new, old)
    metrics = metrics | {SKIPPED: skip.astype("float32")}
    return kept._replace(step=new.step), metrics


def find_nonfinite(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that must be finite and are not."""
    return {n: values[n] for n in FINITE_METRICS if not np.isfinite(values.get(n, 0))}


def load_skipped(path: Path) -> SkippedRanges:
    """The data that a run skips, by its ledger; equal in all processes."""

    def read() -> SkippedRanges:
        rows = [row for row in read_ledger(path) if row["hook"] == REWIND]
        return merge_ranges(row["data"] for row in rows)

    return distributed.broadcast_from_leader(read)


def merge_ranges(ranges: Iterable[Sequence[int]]) -> SkippedRanges:
    """The union of ranges, sorted and without neighbours that touch."""
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(map(tuple, ranges)):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def to_data_step(skipped: SkippedRanges, step: int) -> int:
    """The data step that a training step reads."""
    for begin, end in skipped:
        if step >= begin:
            step += end - begin
    return step


def make_reader(run: RunContext, skipped: SkippedRanges) -> Callable[[int], AnyBatch]:
    """A function that loads the batch of a training step."""
    return lambda step: run.load_batch(run.data, run.seed, to_data_step(skipped, step))
