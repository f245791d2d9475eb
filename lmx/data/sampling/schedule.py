"""How many rows of how many tokens each step has, and which ones of a source."""

import bisect
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from lmx.config.registry import ConfigError, configurable


@configurable
@dataclass(frozen=True, kw_only=True)
class PiecewiseConstant:
    """A number that changes at some steps and stays between them.

    Attributes:
        values: the first from step 0 on, each other one from its step of `at` on.
        at: the steps where the next value begins.
    """

    values: tuple[int | float, ...]
    boundaries: tuple[int, ...]

    def __post_init__(self):
        if len(self.values) != len(self.boundaries) + 1:
            raise ConfigError(
                f"Stepwise has {len(self.values)} values and {len(self.boundaries)} steps where"
                " the next begins: there must be one value more."
            )
        if any(b <= a for a, b in pairwise((0, *self.boundaries))):
            raise ConfigError(
                f"PiecewiseConstant.boundaries is {self.boundaries}: steps above 0, each after the one before."
            )

    def __call__(self, step: int) -> int | float:
        """The value of that step."""
        return self.values[bisect.bisect_right(self.boundaries, step)]


def value_at(number: int | float | PiecewiseConstant, step: int) -> int | float:
    """The number, which may change with the step, as of that step."""
    return number(step) if isinstance(number, PiecewiseConstant) else number


def list_changes(*numbers: int | float | PiecewiseConstant) -> list[int]:
    """Step 0, and every step at which one of the numbers changes."""
    steps = {
        at for n in numbers if isinstance(n, PiecewiseConstant) for at in n.boundaries
    }
    return sorted({0, *steps})


class RowRequest(NamedTuple):
    """Rows that one step asks of a source.

    Chance is keyed by (seed, step, row), which no two rows of a run share. What comes
    once an epoch is chosen by the row's number, which counts on from step to step.
    """

    seed: int
    step: int
    rows: Int64[np.ndarray, " M"]  # of the batch of that step
    rows_before: int  # how many rows of this length the source gave before that step
    indices: Int64[np.ndarray, " M"]  # of the source's rows of this length, from 0 on
    sequence_length: int  # T, tokens


class Stage(NamedTuple):
    """Steps alike in shape."""

    first_step: int  # step
    batch_size: int  # B, rows over all devices
    sequence_length: int  # T, tokens


@dataclass(frozen=True)
class BatchSchedule:
    """The shape of every step of a run: stages that begin at step 0 and have no gaps.

    Rows of one length are numbered through, over all stages that have it.
    """

    stages: tuple[Stage, ...]

    @staticmethod
    def build(
        name: str, batch: int | PiecewiseConstant, length: int | PiecewiseConstant
    ) -> "BatchSchedule":
        """The course of a source of that name with these two settings, checked."""
        stages = []
        for step in list_changes(batch, length):
            shape = {"batch": value_at(batch, step), "length": value_at(length, step)}
            for field, value in shape.items():
                if value < 1 or value != int(value):
                    least = "at least 1" if value < 1 else "it must be whole"
                    raise ConfigError(f"{name}.{field} is {value}: {least}.")
            stages.append(Stage(step, int(shape["batch"]), int(shape["length"])))
        return BatchSchedule(tuple(stages))

    def stage_at(self, step: int) -> Stage:
        """The stage that the step belongs to."""
        return self.stages[bisect.bisect_right(self._first_steps, step) - 1]

    @functools.cached_property
    def _first_steps(self) -> list[int]:
        return [stage.first_step for stage in self.stages]

    def truncate(self, steps: int) -> "BatchSchedule":
        """The stages that a run of so many steps comes to."""
        return BatchSchedule(
            tuple(stage for stage in self.stages if stage.first_step < steps)
        )

    @property
    def unique_shapes(self) -> list[Stage]:
        """The first stage of each shape."""
        return list({stage[1:]: stage for stage in self.stages[::-1]}.values())[::-1]

    def split_steps(self, step: int) -> Iterator[tuple[Stage, int]]:
        """Each stage that began before the step, and how many of its steps did."""
        ends = [*self._first_steps[1:], step]
        for stage, end in zip(self.stages, ends, strict=True):
            if stage.first_step < step:
                yield stage, min(end, step) - stage.first_step

    def count_tokens(self, step: int) -> int:
        """Tokens of all steps before that one, padding among them."""
        return sum(
            s.batch_size * s.sequence_length * steps
            for s, steps in self.split_steps(step)
        )

    def request(self, seed: int, step: int, rows: slice) -> RowRequest:
        """These rows of that step, of a source that gives the run all its rows."""
        stage = self.stage_at(step)
        first = sum(
            s.batch_size * n
            for s, n in self.split_steps(step)
            if s.sequence_length == stage.sequence_length
        )
        index = np.arange(stage.batch_size)[rows]
        return RowRequest(
            seed, step, index, first, first + index, stage.sequence_length
        )
