"""Logs metrics and throughput to the run directory and the progress bar."""

from typing import Any

import jax
import numpy as np

from lmx.core import hardware
from lmx.run.goodput import TimeAccounting
from lmx.run.progress import RunProgress
from lmx.run.run_dir import RunDir
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState

TRAINING_PHASES = ("step", "data", "log")  # throughput is measured over these


class MetricLogger:
    """Logs metrics every few steps, and shows the newest.

    Reads them one step late, so that the device does not wait for the reader.
    """

    def __init__(
        self,
        run: RunContext,
        run_dir: RunDir,
        timing: TimeAccounting,
        log_every: int,
        progress: RunProgress,
    ):
        self.run, self.run_dir, self.log_every = run, run_dir, log_every
        self.timing, self.progress = timing, progress
        self.peak = hardware.peak_flops(run.mesh.size)
        self.pending: tuple[int, Metrics] | None = None
        # Steps done, seconds and seconds of waiting at the last measurement.
        self.last_lap: tuple[int, float, float] | None = None
        self.newest: Metrics = {}
        self.done = 0

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        del state
        jax.block_until_ready(self.newest)  # at most one step runs ahead
        self.newest, self.done = metrics, step
        self.flush()
        self.progress.update(step)
        if self.last_lap is None:  # excludes the first step, which warms up
            jax.block_until_ready(metrics["loss"])
            self._measure_throughput(step)
        if step % self.log_every == 0 or step == self.run.steps:
            self.pending = (step, metrics)
        if step == self.run.steps:
            self.flush()

    def flush(self) -> None:
        """Reads and writes metrics that are still on the device."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        with self.timing.measure("step"):
            jax.block_until_ready(metrics)
        with self.timing.measure("log"):
            self._write(step, metrics)
            self.timing.record(self.done)

    def _write(self, step: int, metrics: Metrics) -> None:
        values = {name: to_python(value) for name, value in metrics.items()}
        values["perplexity"] = float(np.exp(values["nats"]))
        values["tokens_seen"] = self.run.count_tokens(step)
        speed = self._measure_throughput(step)
        self.run_dir.log_metrics(step, values | speed)
        shown = {"loss": f"{values['loss']:.3f}"}
        if speed:
            shown["tok/s"] = f"{speed['tokens_per_second']:,.0f}"
        if "mfu" in speed:
            shown["mfu"] = f"{speed['mfu']:.1%}"
        self.progress.show_metrics(shown)

    def _measure_throughput(self, step: int) -> dict[str, float]:
        """Means over the steps since the last measurement; `step` must be finished."""
        seconds = self.timing.sum_seconds(*TRAINING_PHASES)
        lap = (step, seconds, self.timing.sum_seconds("data"))
        previous, self.last_lap = self.last_lap, lap
        if previous is None or previous[0] == step:
            return {}
        steps, seconds, waiting = (
            new - old for new, old in zip(lap, previous, strict=True)
        )
        tokens = self.run.count_tokens(step) - self.run.count_tokens(previous[0])
        speed = {
            "seconds/step": seconds / steps,
            "seconds/data_wait": waiting / steps,
            "seconds/compute": (seconds - waiting) / steps,
            "tokens_per_second": tokens / seconds,
        }
        if self.peak:
            flops = self.run.count_flops(step) - self.run.count_flops(previous[0])
            speed["mfu"] = flops / seconds / self.peak
        return speed


def to_python(value: Any) -> float | list[float]:
    """A Python number, or one for each layer, rounded to print briefly."""
    return [float(f"{v:.6g}") for v in value] if np.ndim(value) else float(value)
