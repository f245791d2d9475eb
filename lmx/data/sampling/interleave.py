"""Whose turn it is: parts that take turns by weight, each within one of its share."""

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int64

from lmx.config.registry import ConfigError

MAX_PERIOD = 100_000  # turns of a round


class WeightedInterleave:
    """Turns that come round again after the fewest in which the shares are exact.

    After n turns, part i has had within one of n times its share. Tijdeman 1980,
    doi:10.1016/0012-365X(80)90269-1, theorem 1: of the parts that may take the next
    turn, the one that must take it soonest does.
    """

    def __init__(self, weights: Sequence[int | float]):
        self.ratio = integer_ratio(weights)
        self.cycle = np.array(_build_cycle(self.ratio), np.int64)
        self.turns_of = [np.flatnonzero(self.cycle == i) for i in range(len(weights))]
        self.nth = np.zeros(len(self.cycle), np.int64)
        for places in self.turns_of:
            self.nth[places] = np.arange(len(places))

    def assign(
        self, turns: Int64[np.ndarray, " M"]
    ) -> tuple[Int64[np.ndarray, " M"], Int64[np.ndarray, " M"]]:
        """Which part takes each turn, counted from 0, and how many it took before."""
        rounds, place = np.divmod(turns, len(self.cycle))
        part = self.cycle[place]
        return part, rounds * np.array(self.ratio)[part] + self.nth[place]

    def count_before(self, turn: int) -> list[int]:
        """How many turns each part takes before that one."""
        rounds, place = divmod(turn, len(self.cycle))
        return [
            rounds * share + int(np.searchsorted(places, place))
            for share, places in zip(self.ratio, self.turns_of, strict=True)
        ]


def integer_ratio(weights: Sequence[int | float]) -> list[int]:
    """The smallest whole numbers that are to one another as the weights' digits say."""
    exact = [Fraction(repr(float(weight))) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    numbers = [int(weight * scale) for weight in exact]
    numbers = [number // math.gcd(*numbers) for number in numbers]
    if sum(numbers) > MAX_PERIOD:
        raise ConfigError(
            f"weights of {', '.join(f'{w:g}' for w in weights)} are exact after"
            f" {sum(numbers)} rows, and {MAX_PERIOD} is the most: give them fewer digits."
        )
    return numbers


def _build_cycle(shares: Sequence[int]) -> list[int]:
    """Who takes each turn of a round, by the first deadline of those that may.

    The j-th turn of part i may come from (j + 1/d) / w on, and must before
    (j + 1 - 1/d) / w, its share being w and d twice the number of parts less one.
    """
    live = [i for i, share in enumerate(shares) if share]
    turns, d = sum(shares), 2 * max(len(live) - 1, 1)
    due: list[tuple[Fraction, int, int]] = []
    waiting = [(_first_allowed_turn(d, 0, shares[i], turns), i, 0) for i in live]
    heapq.heapify(waiting)
    taken = []
    for turn in range(1, turns + 1):
        while waiting and waiting[0][0] <= turn:
            _, i, j = heapq.heappop(waiting)
            heapq.heappush(due, (Fraction(d * (j + 1) - 1, shares[i]), i, j))
        _, i, j = heapq.heappop(due)
        taken.append(i)
        heapq.heappush(
            waiting, (_first_allowed_turn(d, j + 1, shares[i], turns), i, j + 1)
        )
    return taken


def _first_allowed_turn(d: int, taken: int, share: int, turns: int) -> int:
    """The first turn, counted from 1, that a part with so many may take."""
    return -(-(d * taken + 1) * turns // (d * share))
