"""Deterministic weighted interleaving, within one row of the exact proportion."""

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int64

from lmx.config.registry import ConfigError

MAX_PERIOD = 100_000  # turns


class WeightedInterleave:
    """A periodic sequence of turns, with the shortest period that has exact shares.

    After n turns, each source has had within one of n times its share. Tijdeman 1980,
    doi:10.1016/0012-365X(80)90269-1, theorem 1: of the sources that may take the next
    turn, the one with the earliest deadline takes it.
    """

    def __init__(self, weights: Sequence[int | float]):
        self.ratio = integer_ratio(weights)
        self.cycle = np.array(_build_cycle(self.ratio), np.int64)
        self.turns_of = [np.flatnonzero(self.cycle == i) for i in range(len(weights))]
        self.nth = np.zeros(len(self.cycle), np.int64)
        for turns in self.turns_of:
            self.nth[turns] = np.arange(len(turns))

    def assign(
        self, turns: Int64[np.ndarray, " M"]
    ) -> tuple[Int64[np.ndarray, " M"], Int64[np.ndarray, " M"]]:
        """The source of each turn, and the number of turns that source had before."""
        periods, turn = np.divmod(turns, len(self.cycle))
        source = self.cycle[turn]
        return source, periods * np.array(self.ratio)[source] + self.nth[turn]

    def count_before(self, turn: int) -> list[int]:
        """How many turns each source has before this one."""
        periods, turn = divmod(turn, len(self.cycle))
        return [
            periods * share + int(np.searchsorted(turns, turn))
            for share, turns in zip(self.ratio, self.turns_of, strict=True)
        ]


def integer_ratio(weights: Sequence[int | float]) -> list[int]:
    """The smallest integers in the ratio of the weights, read as decimal numbers."""
    exact = [Fraction(repr(float(weight))) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    numbers = [int(weight * scale) for weight in exact]
    numbers = [number // math.gcd(*numbers) for number in numbers]
    if sum(numbers) > MAX_PERIOD:
        raise ConfigError(
            f"weights of {', '.join(f'{w:g}' for w in weights)} have a period of"
            f" {sum(numbers)} rows, and {MAX_PERIOD} is the maximum: use fewer digits."
        )
    return numbers


def _build_cycle(ratio: Sequence[int]) -> list[int]:
    """The source of each turn of one period, by earliest deadline.

    Turn j of source i is allowed from (j + 1/d) / w on, and its deadline is
    (j + 1 - 1/d) / w, where w is its share and d = 2 (n - 1) for n sources.
    """
    sources = [i for i, share in enumerate(ratio) if share]
    period, d = sum(ratio), 2 * max(len(sources) - 1, 1)
    allowed: list[tuple[Fraction, int, int]] = []
    waiting = [(_first_allowed_turn(d, 0, ratio[i], period), i, 0) for i in sources]
    heapq.heapify(waiting)
    cycle = []
    for turn in range(1, period + 1):
        while waiting and waiting[0][0] <= turn:
            _, i, j = heapq.heappop(waiting)
            heapq.heappush(allowed, (Fraction(d * (j + 1) - 1, ratio[i]), i, j))
        _, i, j = heapq.heappop(allowed)
        cycle.append(i)
        next_turn = _first_allowed_turn(d, j + 1, ratio[i], period)
        heapq.heappush(waiting, (next_turn, i, j + 1))
    return cycle


def _first_allowed_turn(d: int, taken: int, share: int, period: int) -> int:
    """The first turn, counted from 1, that a source with `taken` turns may take."""
    return -(-(d * taken + 1) * period // (d * share))
