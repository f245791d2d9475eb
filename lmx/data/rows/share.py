"""Whose turn it is: parts that take turns by weight, each within one of its share."""

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int64

from lmx.config.names import ConfigError

LONGEST = 100_000  # turns of a round


class Turns:
    """Turns that come round again after the fewest in which the shares are exact.

    After n turns, part i has had within one of n times its share. Tijdeman 1980,
    doi:10.1016/0012-365X(80)90269-1, theorem 1: of the parts that may take the next
    turn, the one that must take it soonest does.
    """

    def __init__(self, weights: Sequence[int | float]):
        self.shares = whole(weights)
        self.part = np.array(_round(self.shares), np.int64)
        self.taken = [np.flatnonzero(self.part == i) for i in range(len(weights))]
        self.nth = np.zeros(len(self.part), np.int64)
        for places in self.taken:
            self.nth[places] = np.arange(len(places))

    def of(
        self, turns: Int64[np.ndarray, " M"]
    ) -> tuple[Int64[np.ndarray, " M"], Int64[np.ndarray, " M"]]:
        """Which part takes each turn, counted from 0, and how many it took before."""
        rounds, place = np.divmod(turns, len(self.part))
        part = self.part[place]
        return part, rounds * np.array(self.shares)[part] + self.nth[place]

    def before(self, turn: int) -> list[int]:
        """How many turns each part takes before that one."""
        rounds, place = divmod(turn, len(self.part))
        return [
            rounds * share + int(np.searchsorted(places, place))
            for share, places in zip(self.shares, self.taken, strict=True)
        ]


def whole(weights: Sequence[int | float]) -> list[int]:
    """The smallest whole numbers that are to one another as the weights' digits say."""
    exact = [Fraction(repr(float(weight))) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    numbers = [int(weight * scale) for weight in exact]
    numbers = [number // math.gcd(*numbers) for number in numbers]
    if sum(numbers) > LONGEST:
        raise ConfigError(
            f"weights of {', '.join(f'{w:g}' for w in weights)} are exact after"
            f" {sum(numbers)} rows, and {LONGEST} is the most: give them fewer digits."
        )
    return numbers


def _round(shares: Sequence[int]) -> list[int]:
    """Who takes each turn of a round, by the first deadline of those that may.

    The j-th turn of part i may come from (j + 1/d) / w on, and must before
    (j + 1 - 1/d) / w, its share being w and d twice the number of parts less one.
    """
    live = [i for i, share in enumerate(shares) if share]
    turns, d = sum(shares), 2 * max(len(live) - 1, 1)
    due: list[tuple[Fraction, int, int]] = []
    waiting = [(_after(d, 0, shares[i], turns), i, 0) for i in live]
    heapq.heapify(waiting)
    taken = []
    for turn in range(1, turns + 1):
        while waiting and waiting[0][0] <= turn:
            _, i, j = heapq.heappop(waiting)
            heapq.heappush(due, (Fraction(d * (j + 1) - 1, shares[i]), i, j))
        _, i, j = heapq.heappop(due)
        taken.append(i)
        heapq.heappush(waiting, (_after(d, j + 1, shares[i], turns), i, j + 1))
    return taken


def _after(d: int, taken: int, share: int, turns: int) -> int:
    """The first turn, counted from 1, that a part with so many may take."""
    return -(-(d * taken + 1) * turns // (d * share))
