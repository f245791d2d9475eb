"""How many rows of how many tokens each step has, and which ones of a source."""

import bisect
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from lmx.config.names import ConfigError, configurable


@configurable
@dataclass(frozen=True, kw_only=True)
class Stepwise:
    """A number that changes at some steps and stays between them.

    Attributes:
        values: the first from step 0 on, each other one from its step of `at` on.
        at: the steps where the next value begins.
    """

    values: tuple[int | float, ...]
    at: tuple[int, ...]

    def __post_init__(self):
        if len(self.values) != len(self.at) + 1:
            raise ConfigError(
                f"Stepwise has {len(self.values)} values and {len(self.at)} steps where"
                " the next begins: there must be one value more."
            )
        if any(b <= a for a, b in pairwise((0, *self.at))):
            raise ConfigError(
                f"Stepwise.at is {self.at}: steps above 0, each after the one before."
            )

    def __call__(self, step: int) -> int | float:
        """The value of that step."""
        return self.values[bisect.bisect_right(self.at, step)]


def value_at(number: int | float | Stepwise, step: int) -> int | float:
    """The number, which may change with the step, as of that step."""
    return number(step) if isinstance(number, Stepwise) else number


def changes(*numbers: int | float | Stepwise) -> list[int]:
    """Step 0, and every step at which one of the numbers changes."""
    steps = {at for n in numbers if isinstance(n, Stepwise) for at in n.at}
    return sorted({0, *steps})


class Wanted(NamedTuple):
    """Rows that one step asks of a source.

    Chance is keyed by (seed, step, row), which no two rows of a run share. What comes
    once an epoch is chosen by the row's number, which counts on from step to step.
    """

    seed: int
    step: int
    rows: Int64[np.ndarray, " M"]  # of the batch of that step
    first: int  # how many rows of this length the source gave before that step
    numbers: Int64[np.ndarray, " M"]  # of the source's rows of this length, from 0 on
    length: int  # T, tokens


class Stage(NamedTuple):
    """Steps alike in shape."""

    first: int  # step
    batch: int  # B, rows over all devices
    length: int  # T, tokens


@dataclass(frozen=True)
class Course:
    """The shape of every step of a run: stages that begin at step 0 and have no gaps.

    Rows of one length are numbered through, over all stages that have it.
    """

    stages: tuple[Stage, ...]

    @staticmethod
    def of(name: str, batch: int | Stepwise, length: int | Stepwise) -> "Course":
        """The course of a source of that name with these two settings, checked."""
        stages = []
        for step in changes(batch, length):
            shape = {"batch": value_at(batch, step), "length": value_at(length, step)}
            for field, value in shape.items():
                if value < 1 or value != int(value):
                    least = "at least 1" if value < 1 else "it must be whole"
                    raise ConfigError(f"{name}.{field} is {value}: {least}.")
            stages.append(Stage(step, int(shape["batch"]), int(shape["length"])))
        return Course(tuple(stages))

    def at(self, step: int) -> Stage:
        """The stage that the step belongs to."""
        return self.stages[bisect.bisect_right(self._firsts, step) - 1]

    @functools.cached_property
    def _firsts(self) -> list[int]:
        return [stage.first for stage in self.stages]

    def until(self, steps: int) -> "Course":
        """The stages that a run of so many steps comes to."""
        return Course(tuple(stage for stage in self.stages if stage.first < steps))

    @property
    def shapes(self) -> list[Stage]:
        """The first stage of each shape."""
        return list({stage[1:]: stage for stage in self.stages[::-1]}.values())[::-1]

    def before(self, step: int) -> Iterator[tuple[Stage, int]]:
        """Each stage that began before the step, and how many of its steps did."""
        ends = [*self._firsts[1:], step]
        for stage, end in zip(self.stages, ends, strict=True):
            if stage.first < step:
                yield stage, min(end, step) - stage.first

    def tokens(self, step: int) -> int:
        """Tokens of all steps before that one, padding among them."""
        return sum(s.batch * s.length * steps for s, steps in self.before(step))

    def wanted(self, seed: int, step: int, rows: slice) -> Wanted:
        """These rows of that step, of a source that gives the run all its rows."""
        stage = self.at(step)
        first = sum(
            s.batch * n for s, n in self.before(step) if s.length == stage.length
        )
        index = np.arange(stage.batch)[rows]
        return Wanted(seed, step, index, first, first + index, stage.length)
