"""Metrics, read one step late, written, and shown on a line."""

import time
from collections.abc import Generator, Iterator
from typing import Any

import jax
import numpy as np

from lmx.core import device
from lmx.data.batches import Batch
from lmx.train.loop import Hook
from lmx.train.record.directory import Directory
from lmx.train.record.line import Line
from lmx.train.run import Run
from lmx.train.step import Metrics, TrainState


class Waited(Iterator[Batch]):
    """Batches, and the seconds that were spent waiting for them."""

    def __init__(self, batches: Iterator[Batch]):
        self.batches, self.waited = batches, 0.0

    def __next__(self) -> Batch:
        begun = time.perf_counter()
        batch = next(self.batches)
        self.waited += time.perf_counter() - begun
        return batch

    def close(self) -> None:
        """Ends the threads that make batches."""
        if isinstance(self.batches, Generator):
            self.batches.close()


class Log:
    """Writes metrics every few steps, and shows the newest on one line.

    Reads them one step late, so that the device never waits for the reader.
    """

    def __init__(
        self, run: Run, directory: Directory, batches: Waited, every: int, line: Line
    ):
        self.run, self.directory, self.every = run, directory, every
        self.batches, self.line = batches, line
        self.peak = device.peak(run.mesh.size)
        self.pending: tuple[int, Metrics] | None = None
        self.mark: tuple[int, float, float] | None = None  # done, seconds, waited
        self.away = 0.0  # seconds spent in other hooks since the mark
        self.newest: Metrics = {}

    def beside(self, hook: Hook) -> Hook:
        """The hook, its seconds kept out of those of the training."""

        def timed(done: int, state: TrainState, metrics: Metrics) -> None:
            begun = time.perf_counter()
            hook(done, state, metrics)
            self.away += time.perf_counter() - begun

        return timed

    def __call__(self, done: int, state: TrainState, metrics: Metrics) -> None:
        del state
        jax.block_until_ready(self.newest)  # no more than one step runs ahead
        self.newest = metrics
        self.flush()
        self.line.update(done)
        if self.mark is None:  # the first step of a process compiles: it is no measure
            jax.block_until_ready(metrics["loss"])
            self._lap(done)
        if done % self.every == 0 or done == self.run.steps:
            self.pending = (done, metrics)
        if done == self.run.steps:
            self.flush()

    def flush(self) -> None:
        """Reads and writes what is still on the device."""
        if self.pending is None:
            return
        done, metrics = self.pending
        self.pending = None
        values = {name: _number(value) for name, value in metrics.items()}
        values["perplexity"] = float(np.exp(values["nats"]))
        values["tokens_seen"] = self.run.tokens(done)
        speed = self._lap(done)
        self.directory.log(done, values | speed)
        shown = {"loss": f"{values['loss']:.3f}"}
        if speed:
            shown["tok/s"] = f"{speed['tokens_per_second']:,.0f}"
        if "mfu" in speed:
            shown["mfu"] = f"{speed['mfu']:.1%}"
        self.line.show(shown)

    def _lap(self, done: int) -> dict[str, float]:
        """What a step took since the last lap, once the step `done` is known done."""
        now, waited = time.perf_counter(), self.batches.waited
        before, self.mark = self.mark, (done, now, waited)
        away, self.away = self.away, 0.0
        if before is None or before[0] == done:
            return {}
        steps, tokens, flops = (
            count(done) - count(before[0])
            for count in (int, self.run.tokens, self.run.flops)
        )
        seconds = (now - before[1] - away) / steps
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


def _number(value: Any) -> float | list[float]:
    """A Python number, or one for each layer, that prints as short as it can."""
    return [float(f"{v:.6g}") for v in value] if np.ndim(value) else float(value)
