"""Reads the metrics of each step: the guard checks all, some are logged and shown."""

from typing import Any, cast

import jax
import numpy as np

from lmx.core import hardware
from lmx.run.goodput import TRAINING_PHASES, TimeAccounting
from lmx.run.progress import RunProgress
from lmx.run.run_dir import RunDir
from lmx.train.guard.nonfinite import WATCHED_METRICS, MetricCheck
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState

Lap = tuple[int, float, float]  # steps done, seconds, and those of waiting for data


class MetricLogger:
    """Checks the metrics of each step, logs them every few steps, shows the newest.

    Reads them one step late: at most one step runs ahead, and the device does not wait.
    """

    def __init__(
        self,
        run: RunContext,
        run_dir: RunDir,
        timing: TimeAccounting,
        progress: RunProgress,
        *,
        check: MetricCheck,
        log_every: int,
    ):
        self.run, self.run_dir, self.timing = run, run_dir, timing
        self.progress, self.check, self.log_every = progress, check, log_every
        self.peak = hardware.peak_flops(run.mesh.size)
        self.pending: tuple[int, Metrics] | None = None
        self.pending_lap: Lap | None = None
        self.last_lap: Lap | None = None
        self.done = 0

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        del state
        self.done = step
        self.flush()
        self.progress.update(step)
        if self.last_lap is None:  # excludes the first step, which warms up
            jax.block_until_ready(metrics["loss"])
            self._measure_throughput(step)
        self.pending, loss = (step, metrics), cast(Any, metrics["loss"])
        # CPUs may have computed it already: at a flush, they have the next one as well.
        self.pending_lap = self._take_lap(step) if loss.is_ready() else None
        if step == self.run.steps:
            self.flush()

    def flush(self) -> None:
        """Reads the metrics of the newest step, as before its state is saved."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        with self.timing.measure("step"):
            jax.block_until_ready(metrics)
        if step % self.log_every == 0 or step == self.run.steps:
            with self.timing.measure("log"):
                self._write(step, metrics)
                self.timing.record(self.done)
        watched = {name: metrics[name] for name in WATCHED_METRICS if name in metrics}
        self.check(step, {n: float(x) for n, x in jax.device_get(watched).items()})

    def _write(self, step: int, metrics: Metrics) -> None:
        values = {name: to_python(value) for name, value in metrics.items()}
        if "nats" in values:
            values["perplexity"] = float(np.exp(values["nats"]))
        values["tokens_seen"] = self.run.batch_schedule.count_tokens(step)
        speed = self._measure_throughput(step)
        self.run_dir.log_metrics(step, values | speed)
        shown = {"loss": f"{values['loss']:.3f}"}
        shown |= {name: f"{x:.3f}" for name, x in self.run_dir.evaluated.items()}
        if speed:
            shown["tok/s"] = f"{speed['tokens_per_second']:,.0f}"
        if "mfu" in speed:
            shown["mfu"] = f"{speed['mfu']:.1%}"
        self.progress.show_metrics(shown)

    def _measure_throughput(self, step: int) -> dict[str, float]:
        """Means over the steps since the last measurement; `step` must be finished."""
        lap = self.pending_lap or self._take_lap(step)
        previous, self.last_lap = self.last_lap, lap
        if previous is None or previous[0] == step:
            return {}
        steps, seconds, waiting = np.subtract(lap, previous).tolist()
        first, last = map(self.run.batch_schedule.count_tokens, (previous[0], step))
        speed = {
            "seconds/step": seconds / steps,
            "seconds/data_wait": waiting / steps,
            "seconds/compute": (seconds - waiting) / steps,
            "tokens_per_second": (last - first) / seconds,
        }
        if self.peak:
            flops = self.run.count_flops(step) - self.run.count_flops(previous[0])
            speed["mfu"] = flops / seconds / self.peak
        return speed

    def _take_lap(self, step: int) -> Lap:
        seconds = self.timing.sum_seconds(*TRAINING_PHASES)
        return step, seconds, self.timing.sum_seconds("data")


def to_python(value: Any) -> float | list[float]:
    """A Python number, or one for each layer, rounded to print briefly."""
    return [float(f"{v:.6g}") for v in value] if np.ndim(value) else float(value)
