"""Compute-optimal sizes without a law of N and D: the frontier, and isoFLOP parabolas.

Approaches 1 and 2 of Hoffmann et al. 2022, arXiv:2203.15556, sections 3.1 and 3.2.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from lmx.study.fit import Estimate
from lmx.study.points import Points

Values = Float[np.ndarray, "n"] | Sequence[float]
WINDOW = 5  # points that a parabola is fitted to: the lowest, and those around it


class Parabola(NamedTuple):
    """The parabola of loss over log N at one budget.

    Attributes:
        c: FLOPs, the median of the budget.
        log_n, loss: where its minimum is.
        low, high: log N of the smallest and the largest model of the budget.
        coefficients: highest power first.
    """

    c: float
    log_n: float
    loss: float
    low: float
    high: float
    coefficients: np.ndarray

    @property
    def at_edge(self) -> bool:
        """Whether the minimum is not between the models of the budget."""
        return not self.low < self.log_n < self.high


def fit_exponent(x: Values, y: Values) -> Estimate | None:
    """The slope of log y over log x by least squares, with its 95% t interval.

    None for under three values of x.
    """
    log_x, log_y = np.log(x), np.log(y)
    if len(np.unique(log_x)) < 3:
        return None
    line: Any = stats.linregress(log_x, log_y)
    half = line.stderr * stats.t.ppf(0.975, len(log_x) - 2)
    return Estimate(*(float(line.slope + side * half) for side in (0, -1, 1)))


def fit_parabolas(points: Points) -> list[Parabola]:
    """A parabola for each budget that has five models or more, smallest first."""
    budgets = points.budgets
    fits = (
        _fit_parabola(points.select(budgets == x)) for x in range(budgets.max() + 1)
    )
    return [fit for fit in fits if fit]


def _fit_parabola(points: Points) -> Parabola | None:
    points = points.select(np.argsort(points.n))
    log_n = np.log(points.n)
    if len(np.unique(log_n)) < WINDOW:
        return None
    first = int(np.argmin(points.loss)) - WINDOW // 2
    first = max(min(first, len(points) - WINDOW), 0)
    window = slice(first, first + WINDOW)
    x, y = log_n[window], points.loss[window]
    middle = float(x.mean())
    a, b, c = coefficients = np.polyfit(x - middle, y, 2)
    if a <= 0:  # no minimum: beyond the lowest end
        vertex = -np.inf if y[0] < y[-1] else np.inf
        lowest = float(y.min())
    else:
        vertex, lowest = middle - b / a / 2, float(c - b * b / a / 4)
    shifted = np.poly1d(coefficients)(np.poly1d([1.0, -middle])).coefficients
    budget = float(np.median(points.c))
    ends = float(log_n[0]), float(log_n[-1])
    return Parabola(budget, float(vertex), lowest, *ends, shifted)


def fit_isoflop(points: Points) -> Estimate | None:
    """The exponent of optimal N over C, by the parabolas' minima (approach 2)."""
    inside = [x for x in fit_parabolas(points) if not x.at_edge]
    return fit_exponent([x.c for x in inside], np.exp([x.log_n for x in inside]))


def find_frontier(points: Points) -> Points:
    """The points with a lower loss than all that cost less, cheapest first."""
    points = points.select(np.lexsort((points.loss, points.c)))
    before = np.minimum.accumulate(np.concatenate(([np.inf], points.loss[:-1])))
    return points.select(points.loss < before)


def fit_frontier(points: Points) -> Estimate | None:
    """The exponent of optimal N over C, by the sizes on the frontier (approach 1)."""
    best = find_frontier(points)
    return fit_exponent(best.c, best.n)
