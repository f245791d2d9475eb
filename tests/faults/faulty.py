"""Data and hooks with a fault in them, for `lmx train --import faulty`."""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmx.config.registry import configurable
from lmx.core.batch import Batch
from lmx.data.dataset import DatasetWrapper, WrapperConfig
from lmx.run.run_dir import RunDir
from lmx.train.hook import Hook, ScheduledHook
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState


@configurable
@dataclass(frozen=True, kw_only=True)
class Faulty(WrapperConfig):
    """Another source, with something wrong at some of its steps.

    Attributes:
        infinite: steps that count infinitely much.
        hard: steps of another language than all others, in which a token's target is
            the token itself.
        hanging: steps that never come.
        missing: steps that cannot be read.
        without: the first step of data that are left out, and the first after them.
    """

    infinite: tuple[int, ...] = ()
    hard: tuple[int, ...] = ()
    hanging: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    without: tuple[int, ...] = ()

    def open(self) -> Any:
        return Wrong(source=self.source.open(), faults=self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Wrong(DatasetWrapper):
    """The rows of a dataset, with faults."""

    faults: Faulty

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        if self.faults.without:
            begin, end = self.faults.without
            step += (end - begin) * (step >= begin)
        batch = self.source.batch_at(seed, step, rows)
        if rows == slice(1):  # asked for its shape
            return batch
        if step in self.faults.hanging:
            time.sleep(3600)
        if step in self.faults.missing:
            raise OSError(f"no batch of step {step}")
        if step in self.faults.infinite:
            return batch._replace(weights=np.full_like(batch.weights, np.inf))
        if self.faults.hard:
            other = (batch.tokens + (step in self.faults.hard)) % self.source.info.vocab
            return batch._replace(targets=other)
        return batch


@configurable
@dataclass(frozen=True, kw_only=True)
class Flip(Hook):
    """Flips a bit in the memory of the second device: in its copy of some parameters.

    Once only: not where the file `flipped` is already.
    """

    at: int  # steps done

    def start(self, run: RunContext) -> Callable[[RunDir], ScheduledHook]:
        def flip(done: int, state: TrainState, metrics: Metrics) -> None:
            del done, metrics
            if not Path("flipped").exists():
                Path("flipped").touch()
                copy = jax.tree.leaves(state.params)[0].addressable_shards[1].data
                copy.block_until_ready()  # what is computed later would undo it
                byte = ctypes.c_uint8.from_address(copy.unsafe_buffer_pointer() + 2)
                byte.value ^= 1 << 5  # of float32's mantissa: no step rounds it away

        return lambda directory: ScheduledHook(lambda done: done == self.at, flip)
