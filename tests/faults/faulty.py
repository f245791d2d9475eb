"""A dataset and a hook with faults, for `lmx train --import faulty`."""

import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmx.config.registry import configurable
from lmx.core.batch import Batch
from lmx.data.dataset import DatasetWrapper, WrapperConfig
from lmx.train.hook import Hook, HookConfig
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState


@configurable
@dataclass(frozen=True, kw_only=True)
class Faulty(WrapperConfig):
    """Another dataset, with faults at some of its steps.

    Attributes:
        infinite: steps with infinite weights.
        hard: steps with other targets than all others: each token's is the token.
        hanging: steps that never return.
        missing: steps that raise OSError.
        without: the range of data steps that are left out.
        seed_by_process: whether every process reads other data.
    """

    infinite: tuple[int, ...] = ()
    hard: tuple[int, ...] = ()
    hanging: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    without: tuple[int, ...] = ()
    seed_by_process: bool = False

    def open(self) -> Any:
        return FaultyDataset(source=self.source.open(), faults=self)


@dataclass(frozen=True, kw_only=True, eq=False)
class FaultyDataset(DatasetWrapper):
    """A dataset with faults."""

    faults: Faulty

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        if self.faults.without:
            begin, end = self.faults.without
            step += (end - begin) * (step >= begin)
        seed += os.getpid() * self.faults.seed_by_process
        batch = self.source.batch_at(seed, step, rows)
        if rows == slice(1):  # of `abstract_batch`
            return batch
        if step in self.faults.hanging:
            time.sleep(3600)
        if step in self.faults.missing:
            raise OSError(f"no batch of step {step}")
        if step in self.faults.infinite:
            return batch._replace(weights=np.full_like(batch.weights, np.inf))
        if self.faults.hard:
            targets = (
                batch.tokens + (step in self.faults.hard)
            ) % self.source.info.vocab
            return batch._replace(targets=targets)
        return batch


@configurable
@dataclass(frozen=True, kw_only=True)
class Flip(HookConfig):
    """Flips a bit in the memory of the second device: in its copy of some parameters.

    Once only: not where the file `flipped` is already.
    """

    at: int  # steps done

    def build(self, run: RunContext) -> Hook:
        def flip(done: int, state: TrainState, metrics: Metrics) -> None:
            del done, metrics
            if not Path("flipped").exists():
                Path("flipped").touch()
                copy = jax.tree.leaves(state.params)[0].addressable_shards[1].data
                copy.block_until_ready()  # what is computed later would undo it
                byte = ctypes.c_uint8.from_address(copy.unsafe_buffer_pointer() + 2)
                byte.value ^= 1 << 5  # of float32's mantissa: no step rounds it away

        return Hook(call=flip, is_due=lambda step: step == self.at)
