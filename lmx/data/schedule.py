"""Schedules of batch size and sequence length, and the row requests they imply."""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from lmx.config.registry import (
    NonNegative,
    Positive,
    check_fields,
    configurable,
    require,
)


@configurable
@dataclass(frozen=True, kw_only=True)
class PiecewiseConstant:
    """A number that changes at some steps.

    Attributes:
        values: the first from step 0 on, each further one from its boundary on.
        boundaries: the steps at which the next value begins.
    """

    values: NonNegative[tuple[int | float, ...]]
    boundaries: Positive[tuple[int, ...]]

    def __post_init__(self):
        count = len(self.boundaries) + 1
        is_increasing = all(a < b for a, b in pairwise((0, *self.boundaries)))
        check_fields(
            self,
            boundaries=(is_increasing, "above 0 and increasing"),
            values=(len(self.values) == count, f"{count} numbers"),
        )

    def __call__(self, step: int) -> int | float:
        return self.values[bisect.bisect_right(self.boundaries, step)]


def value_at(number: int | float | PiecewiseConstant, step: int) -> int | float:
    """The value of a constant or piecewise constant number at a step."""
    return number(step) if isinstance(number, PiecewiseConstant) else number


def list_changes(*numbers: int | float | PiecewiseConstant) -> list[int]:
    """Step 0, and every step at which one of the numbers changes."""
    schedules = [n for n in numbers if isinstance(n, PiecewiseConstant)]
    return sorted({0, *(step for n in schedules for step in n.boundaries)})


class RowRequest(NamedTuple):
    """Rows of one step that are requested from a dataset.

    Random numbers are keyed by (seed, step, row), which is unique in a run. What comes
    once per epoch is selected by index, which increases from step to step.
    """

    seed: int
    step: int
    rows: Int64[np.ndarray, " M"]  # of the batch of that step
    rows_before: int  # rows of this length that the dataset returned before
    indices: Int64[np.ndarray, " M"]  # of the dataset's rows of this length, from 0 on
    sequence_length: int


class Stage(NamedTuple):
    """Steps with the same batch shape."""

    first_step: int
    batch_size: int  # B, rows over all devices
    sequence_length: int  # T, tokens


@dataclass(frozen=True)
class BatchSchedule:
    """The batch shape of every step: stages from step 0 on, without gaps.

    Rows of the same length have consecutive indices, across all stages.
    """

    stages: tuple[Stage, ...]

    @staticmethod
    def build(
        name: str,
        batch_size: int | PiecewiseConstant,
        sequence_length: int | PiecewiseConstant,
    ) -> "BatchSchedule":
        """The schedule of a dataset; `name` is its class, for error messages."""
        stages = []
        for step in list_changes(batch_size, sequence_length):
            shape = (value_at(batch_size, step), value_at(sequence_length, step))
            for field, value in zip(Stage._fields[1:], shape, strict=True):
                require(
                    value >= 1 and value == int(value),
                    f"{name}.{field} is {value}: it must be a whole number of at"
                    " least 1.",
                )
            stages.append(Stage(step, *map(int, shape)))
        return BatchSchedule(tuple(stages))

    def stage_at(self, step: int) -> Stage:
        return self.stages[bisect.bisect_right(self._first_steps, step) - 1]

    @cached_property
    def _first_steps(self) -> list[int]:
        return [stage.first_step for stage in self.stages]

    def truncate(self, steps: int) -> "BatchSchedule":
        """The stages that a run of that many steps reaches."""
        return BatchSchedule(tuple(s for s in self.stages if s.first_step < steps))

    @property
    def unique_shapes(self) -> list[Stage]:
        """The first stage of each shape."""
        return list({stage[1:]: stage for stage in self.stages[::-1]}.values())[::-1]

    def split_steps(self, step: int) -> Iterator[tuple[Stage, int]]:
        """Each stage that begins before a step, and its number of steps before it."""
        ends = [*self._first_steps[1:], step]
        for stage, end in zip(self.stages, ends, strict=True):
            if stage.first_step < step:
                yield stage, min(end, step) - stage.first_step

    def count_tokens(self, step: int) -> int:
        """Tokens of all steps before this one, padding included."""
        return sum(
            stage.batch_size * stage.sequence_length * steps
            for stage, steps in self.split_steps(step)
        )

    def request(self, seed: int, step: int, rows: slice) -> RowRequest:
        """Requests rows of a step, from a dataset that provides all rows of a run."""
        _, batch_size, length = self.stage_at(step)
        rows_before = sum(
            stage.batch_size * steps
            for stage, steps in self.split_steps(step)
            if stage.sequence_length == length
        )
        index = np.arange(batch_size)[rows]
        return RowRequest(seed, step, index, rows_before, rows_before + index, length)
