"""Metrics, read one step late, written, and shown on a line."""

from typing import Any

import jax
import numpy as np

from lmx.core import hardware
from lmx.run.progress import RunProgress
from lmx.run.run_dir import RunDir
from lmx.run.timing import TimeAccounting
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState

TRAINING_PHASES = (
    "step",
    "data",
    "log",
)  # the states of the account that speed is made of


class MetricLogger:
    """Writes metrics every few steps, and shows the newest on one line.

    Reads them one step late, so that the device never waits for the reader.
    """

    def __init__(
        self,
        run: RunContext,
        directory: RunDir,
        account: TimeAccounting,
        log_every: int,
        line: RunProgress,
    ):
        self.run, self.directory, self.log_every = run, directory, log_every
        self.account, self.line = account, line
        self.peak = hardware.peak_flops(run.mesh.size)
        self.pending: tuple[int, Metrics] | None = None
        self.last_lap: tuple[int, float, float] | None = None  # done, seconds, waited
        self.newest: Metrics = {}
        self.done = 0

    def __call__(self, done: int, state: TrainState, metrics: Metrics) -> None:
        del state
        jax.block_until_ready(self.newest)  # no more than one step runs ahead
        self.newest, self.done = metrics, done
        self.flush()
        self.line.update(done)
        if (
            self.last_lap is None
        ):  # the first step of a process warms it: it is no measure
            jax.block_until_ready(metrics["loss"])
            self._measure_throughput(done)
        if done % self.log_every == 0 or done == self.run.steps:
            self.pending = (done, metrics)
        if done == self.run.steps:
            self.flush()

    def flush(self) -> None:
        """Reads and writes what is still on the device."""
        if self.pending is None:
            return
        done, metrics = self.pending
        self.pending = None
        with self.account.measure("step"):
            jax.block_until_ready(metrics)
        with self.account.measure("log"):
            self._write(done, metrics)
            self.account.record(self.done)

    def _write(self, done: int, metrics: Metrics) -> None:
        values = {name: to_python(value) for name, value in metrics.items()}
        values["perplexity"] = float(np.exp(values["nats"]))
        values["tokens_seen"] = self.run.count_tokens(done)
        speed = self._measure_throughput(done)
        self.directory.log_metrics(done, values | speed)
        shown = {"loss": f"{values['loss']:.3f}"}
        if speed:
            shown["tok/s"] = f"{speed['tokens_per_second']:,.0f}"
        if "mfu" in speed:
            shown["mfu"] = f"{speed['mfu']:.1%}"
        self.line.show_metrics(shown)

    def _measure_throughput(self, done: int) -> dict[str, float]:
        """What a step took since the last lap, once the step `done` is known done."""
        now, waited = (
            self.account.sum_seconds(*TRAINING_PHASES),
            self.account.sum_seconds("data"),
        )
        before, self.last_lap = self.last_lap, (done, now, waited)
        if before is None or before[0] == done:
            return {}
        steps, tokens, flops = (
            count(done) - count(before[0])
            for count in (int, self.run.count_tokens, self.run.count_flops)
        )
        seconds = (now - before[1]) / steps
        waiting = (waited - before[2]) / steps
        speed = {
            "seconds/step": seconds,
            "seconds/data_wait": waiting,
            "seconds/compute": seconds - waiting,
            "tokens_per_second": tokens / steps / seconds,
        }
        if self.peak:
            speed["mfu"] = flops / steps / seconds / self.peak
        return speed


def to_python(value: Any) -> float | list[float]:
    """A Python number, or one for each layer, that prints as short as it can."""
    return [float(f"{v:.6g}") for v in value] if np.ndim(value) else float(value)
