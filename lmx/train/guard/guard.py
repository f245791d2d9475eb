"""What becomes of a step whose numbers are wrong: what every guard is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from lmx.data.sampling.schedule import BatchSchedule
from lmx.run.run_dir import RunDir
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.policy import CheckpointPolicy
from lmx.train.diloco import TrainStepFn
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState

Init = Callable[[], TrainState]
SKIPPED, SPIKE = "skipped", "spike"  # metrics of guards: above 0 where a step is that
WATCHED_METRICS = ("loss", "grad_norm", "update_norm", "param_norm")


class FaultError(Exception):
    """Training must stop; the process exits with `exit_status`."""

    def __init__(self, reason: str, exit_status: int = 1):
        super().__init__(reason)
        self.exit_status = exit_status


class Guard(ABC):
    """What becomes of a step whose numbers are wrong."""

    def check(self, course: BatchSchedule, save: CheckpointPolicy) -> None:
        """Refuses a run that it cannot guard."""
        del course, save

    def wrap_init(self, init: Init) -> Init:
        """Makes the state of step 0, with what the guard keeps in it."""
        return init

    def wrap_step(self, step_fn: TrainStepFn) -> TrainStepFn:
        """One step, with what the guard does on the devices."""
        return step_fn

    @abstractmethod
    def start(
        self, run: RunContext, directory: RunDir, checkpoints: CheckpointManager
    ) -> "MetricWatcher":
        """What reads the metrics of each step, and may end the run."""


class MetricWatcher:
    """Hands on the metrics that tell of faults, one step late; `flush`, all there are.

    Called after `MetricLogger`, which waits for the step before, it waits for nothing.
    """

    def __init__(self, check: Callable[[int, Mapping[str, float]], None]):
        self.check = check
        self.pending: tuple[int, Metrics] | None = None

    def __call__(self, done: int, state: TrainState, metrics: Metrics) -> None:
        del state
        self.flush()
        self.pending = (done, metrics)

    def flush(self) -> None:
        """Looks at the newest step too: before its state is saved, say."""
        if self.pending is None:
            return
        (done, metrics), self.pending = self.pending, None
        told = {
            n: metrics[n] for n in (*WATCHED_METRICS, SKIPPED, SPIKE) if n in metrics
        }
        self.check(done, {n: float(x) for n, x in jax.device_get(told).items()})


def find_nonfinite(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of the watched metrics that are no finite number."""
    return {
        n: values[n] for n in WATCHED_METRICS if not np.isfinite(values.get(n, 0.0))
    }
