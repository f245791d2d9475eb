"""Guards: policies for steps with non-finite numbers or loss spikes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lmx.data.dataset import DocumentSpan
from lmx.data.schedule import BatchSchedule
from lmx.run.ledger import Ledger
from lmx.run.run_dir import RunDir
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.policy import CheckpointPolicy
from lmx.train.guard.skipped_data import load_skipped, to_data_step
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState, TrainStepFn

Init = Callable[[], TrainState]
MetricCheck = Callable[[int, Mapping[str, float]], None]  # of a step and its metrics
SKIPPED, SPIKE = "skipped", "spike"  # metrics of guards: above 0 where a step is that
WATCHED_METRICS = ("loss", "grad_norm", "update_norm", "param_norm")
MAX_DOCUMENTS = 8  # that a message names


class FaultError(Exception):
    """Training must stop; the process exits with `exit_status`."""

    def __init__(self, reason: str, exit_status: int = 1):
        super().__init__(reason)
        self.exit_status = exit_status


@dataclass(frozen=True)
class GuardContext:
    """What the metric check of a guard may use."""

    run: RunContext
    run_dir: RunDir
    checkpoints: CheckpointManager

    def record(self, step: int, name: str, status: str, **facts: Any) -> None:
        """Adds a line to the ledger."""
        Ledger(self.run_dir).record(step, name, status, **facts)

    def make_fault(self, step: int, values: Mapping[str, float]) -> FaultError:
        """An error that names what is wrong with a step, and its documents.

        The state before the step is on disk when this returns.
        """
        self.checkpoints.wait()
        newest = max(self.checkpoints.list_steps(), default=0)
        bad = [f"{name} {x:g}" for name, x in find_nonfinite(values).items()]
        reason = ", ".join(bad) or f"a spike of its loss, {values['loss']:g}"
        data_step = to_data_step(load_skipped(self.run_dir.path), step - 1)
        spans = self.run.data.locate_at(self.run.seed, data_step)
        documents = "; ".join(map(_format_span, spans[:MAX_DOCUMENTS]))
        if len(spans) > MAX_DOCUMENTS:
            documents += f"; and {len(spans) - MAX_DOCUMENTS} more"
        self.record(step, "Guard", "failed", reason=reason)
        return FaultError(
            f"step {step} has {reason}. Its batch: {documents}. The newest checkpoint"
            f" is that of step {newest}. The same command fails at the same step again:"
            " change something, as by Experiment.guard=@SkipNonFinite() --allow-change"
            " Experiment.guard."
        )


class Guard(ABC):
    """A policy for steps with wrong numbers."""

    def check(
        self, batch_schedule: BatchSchedule, checkpoint: CheckpointPolicy
    ) -> None:
        """Refuses a run that this guard does not support."""
        del batch_schedule, checkpoint

    def wrap_init(self, init: Init) -> Init:
        """Adds the state of the guard to the state of step 0."""
        return init

    def wrap_step(self, step_fn: TrainStepFn) -> TrainStepFn:
        """Adds to a step what the guard does on the devices."""
        return step_fn

    @abstractmethod
    def build(self, context: GuardContext) -> MetricCheck:
        """The check of the metrics of each step, which may end the run."""


class MetricWatcher:
    """Passes the metrics of each step to a check, one step late.

    Called after `MetricLogger`, which waits for the step before, it waits for nothing.
    """

    def __init__(self, check: MetricCheck):
        self.check = check
        self.pending: tuple[int, Metrics] | None = None

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        del state
        self.flush()
        self.pending = (step, metrics)

    def flush(self) -> None:
        """Checks the newest step too, as before its state is saved."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        names = (*WATCHED_METRICS, SKIPPED, SPIKE)
        watched = {name: metrics[name] for name in names if name in metrics}
        values = jax.device_get(watched)
        self.check(step, {name: float(x) for name, x in values.items()})


def find_nonfinite(values: Mapping[str, Any]) -> dict[str, float]:
    """The watched metrics that are not finite."""
    return {n: values[n] for n in WATCHED_METRICS if not np.isfinite(values.get(n, 0))}


def _format_span(span: DocumentSpan) -> str:
    row, _, source, document, offset, length = span
    if document is None or offset is None:
        return f"row {row} of {source}"
    return f"row {row} {source} document {document} [{offset}, {offset + length})"
