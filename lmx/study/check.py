"""Doubts about a fit: outliers, undecided asymptotes, backtests, other fits."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import stats

from lmx.study.fit import Estimate, Fit, fit_law, refine, sum_huber
from lmx.study.isoflop import fit_parabolas
from lmx.study.points import Points, make_points

OUTLIER = 4.5  # robust standard deviations
EARLY = 1e-6  # of the objective: one start ended this much above another
SPREAD = 1.1  # of C / (N D), largest over smallest, within one convention
ALIGNED = 0.999  # correlation of log N and log D
MIN_BUDGETS = 3
HELD_OUT = 0.1  # of the points, at least, in a backtest
RUNS = 3  # that are suggested


def find_outliers(fit: Fit) -> np.ndarray:
    """The indices of points far from the law, farthest first."""
    distance = abs(fit.residuals) / max(fit.deviation, 1e-12)
    order = np.argsort(-distance)
    return order[distance[order] > OUTLIER]


def list_warnings(fit: Fit, asymptote: Estimate | None) -> list[str]:
    """What a reader of the fit must know, a sentence each."""
    points, found = fit.points, []
    if len(outliers := find_outliers(fit)):
        rows = ", ".join(
            f"{points.rows[i]} (loss {points.loss[i]:.3f})" for i in outliers[:10]
        )
        found.append(
            f"{len(outliers)} outliers, over {OUTLIER} robust deviations from the law:"
            f" rows {rows}. Look at these runs; --drop-outliers fits without them."
        )
    count = int(points.budgets.max()) + 1
    if count < MIN_BUDGETS:
        found.append(
            f"{count} compute budgets: exponents of compute need {MIN_BUDGETS} or more."
        )
    ratio = points.c / (points.n * points.d)
    if ratio.max() > SPREAD * ratio.min():
        found.append(
            f"C / (N D) is from {ratio.min():.2f} to {ratio.max():.2f}: N, D or C are"
            " not counted by one convention (embeddings, attention)."
        )
    logs = np.log([points.n, points.d])
    if "n" in fit.law.varies and abs(np.corrcoef(logs)[0, 1]) > ALIGNED:
        found.append(
            "D follows from N in these runs, so that the terms of N and of D can hardly"
            " be told apart: add runs of other D / N (IsoFLOP), or use --form compute."
        )
    if edges := [x for x in fit_parabolas(points) if x.at_edge]:
        budgets = ", ".join(f"{x.c:.2g}" for x in edges)
        found.append(
            f"at the budgets {budgets} the lowest loss is at the edge of the models:"
            " add others there."
        )
    first, best = fit.objectives[0], min(fit.objectives)
    if first > best * (1 + EARLY):
        found.append(
            f"the most promising start ended at the objective {first:.6g}, and another"
            f" at {best:.6g}: there are several minima, and there may be a lower one."
        )
    if asymptote and not 0 < asymptote.low < asymptote.high < points.loss.min():
        found.append(
            f"the data do not decide the asymptote E: its interval is"
            f" {asymptote.low:.3g} to {asymptote.high:.3g}, and the lowest loss is"
            f" {points.loss.min():.3g}."
        )
    return found


class Comparison(NamedTuple):
    """Parameters from elsewhere, held against a fit.

    Attributes:
        objective: on these points.
        ratio: the likelihood ratio to the fit, and `limit`, its 95% quantile.
        refined: the objective of a fit that starts there.
    """

    objective: float
    ratio: float
    limit: float
    refined: float

    @property
    def is_excluded(self) -> bool:
        """Whether the joint 95% region of the parameters does not contain them."""
        return self.ratio > self.limit

    @property
    def stopped_early(self) -> bool:
        """Whether an optimizer that ended there was not at a minimum."""
        return self.objective > self.refined * (1 + EARLY)


def compare(fit: Fit, published: Mapping[str, float]) -> Comparison:
    """Holds the published parameters of the same law against a fit."""
    law, points = fit.law, fit.points
    params = law.parse(published)
    residuals = law.log_loss(params, points) - np.log(points.loss)
    objective = sum_huber(residuals, fit.delta)
    fitted = len(fit.free)
    limit = fitted * stats.f.ppf(0.95, fitted, len(points) - fitted)
    ratio = 2 * (objective - fit.objective) / fit.scale
    refined = refine(replace(fit, params=params)).objective
    return Comparison(objective, ratio, float(limit), refined)


class Backtest(NamedTuple):
    """The prediction of points that were held out.

    Attributes:
        held_out: "budgets" or "models": the largest of which were held out.
        points: their number.
        error: the root mean square of the log error; `bias` is its mean.
        covered: the fraction of points within their 95% prediction interval.
    """

    held_out: str
    points: int
    error: float
    bias: float
    covered: float


def backtest(fit: Fit, field: str) -> Backtest | None:
    """Fits without the largest "c" or "n", and predicts those.

    None where too few points are left.
    """
    values = getattr(fit.points, field)
    limit = np.quantile(values, 1 - HELD_OUT, method="lower")
    held = values >= limit * (1 - 1e-9)
    rest = fit.points.select(~held)
    if len(rest) <= len(fit.free) + 1 or np.ptp(rest.n) == 0 or np.ptp(rest.d) == 0:
        return None
    earlier = fit_law(fit.law, rest, fit.delta, fit.pinned)
    tests = fit.points.select(held)
    errors = earlier.law.log_loss(earlier.params, tests) - np.log(tests.loss)
    inside = abs(errors) <= prediction_error(earlier, tests)
    name = {"c": "budgets", "n": "models"}[field]
    rms = math.sqrt(float(np.mean(errors**2)))
    return Backtest(name, len(tests), rms, float(errors.mean()), float(inside.mean()))


def prediction_error(fit: Fit, points: Points) -> np.ndarray:
    """Half the 95% interval of the log loss of a run, by the delta method."""
    jacobian = fit.jacobian(points)
    variance = np.einsum("ij,jk,ik->i", jacobian, fit.covariance, jacobian)
    degrees = len(fit.points) - len(fit.free)
    return stats.t.ppf(0.975, degrees) * np.sqrt(variance + fit.deviation**2)


class NextRun(NamedTuple):
    """A run, and the factor by which it and those before narrow an interval."""

    n: float
    d: float
    factor: float


def suggest_runs(fit: Fit, gradient: np.ndarray, budget: float) -> list[NextRun]:
    """The runs of at most `budget` FLOPs that narrow the interval of a quantity most.

    Greedy c-optimal design (Atkinson, Donev and Tobias 2007, Optimum Experimental
    Designs, section 10.4) with the gradient of the quantity by the fitted parameters.
    """
    points, flops = fit.points, fit.points.flops_per_token
    sizes = np.geomspace(points.n.min() / 3, points.n.max() * 3, 25)
    budgets = np.geomspace(points.c.min(), budget, 9)
    n, c = (x.ravel() for x in np.meshgrid(sizes, budgets))
    d = c / flops / n
    near = (points.d.min() / 3 <= d) & (d <= points.d.max() * 3)
    candidates = make_points(n[near], d[near])
    jacobian, covariance = fit.jacobian(candidates), fit.covariance
    first = gradient @ covariance @ gradient
    noise, chosen = fit.variance, []
    for _ in range(RUNS if len(jacobian) and first > 0 else 0):
        shared = jacobian @ covariance
        gain = (shared @ gradient) ** 2 / (
            noise + np.einsum("ij,ij->i", shared, jacobian)
        )
        best = int(np.argmax(gain))
        row = shared[best]
        covariance = covariance - np.outer(row, row) / (noise + row @ jacobian[best])
        left = gradient @ covariance @ gradient
        run = candidates.select(np.array(best))
        chosen.append(NextRun(float(run.n), float(run.d), math.sqrt(left / first)))
    return chosen
