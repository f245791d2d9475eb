"""Fits of scaling laws: robust regression, bootstrap and profile likelihood."""

import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats
from scipy.optimize import least_squares

from lmx.config.registry import require
from lmx.study.law import Law
from lmx.study.points import Points

DELTA = 1e-3  # of the Huber loss of log residuals. Hoffmann et al. 2022, section 3.3
STARTS = 4  # fits from different starts, of which the best counts
STEP = 1e-30  # imaginary, of derivatives
MAD_TO_DEVIATION = 1.4826  # of a normal distribution
EXACT, ROUGH = 1e-13, 1e-7  # relative tolerances: of a fit, and of one of many
TINY, HUGE = 1e-30, 1e300
PARALLEL = 100  # draws from which on processes pay
PENALTY = 300.0  # in standard errors
MAX_STEPS = 12  # of the search of the end of an interval

Quantity = Callable[[np.ndarray], np.ndarray]  # of parameters [..., P]


class Constraint(NamedTuple):
    """A quantity that must have a value, and the weight of the penalty."""

    quantity: Quantity
    value: float
    weight: float

    def miss(self, params: np.ndarray) -> np.ndarray:
        """The weighted difference."""
        return self.weight * (self.quantity(params) - self.value)


class Estimate(NamedTuple):
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float

    def map(self, function: Callable[[float], float]) -> "Estimate":
        """The estimate of an increasing function of it."""
        return Estimate(*map(function, self))


@dataclass(frozen=True, eq=False)
class Fit:
    """A law with the parameters that fit points best.

    Attributes:
        params: the vector of parameters of the law.
        delta: residuals of log loss beyond it count linearly (Huber loss).
        objectives: of each start, the most promising first.
        pinned: shape parameters, and E, that were given and not fitted.
    """

    law: Law
    points: Points
    params: Float[np.ndarray, "P"]
    delta: float
    objectives: tuple[float, ...] = ()
    pinned: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def residuals(self) -> Float[np.ndarray, "points"]:
        """Predicted log loss minus that observed."""
        return self.law.log_loss(self.params, self.points) - np.log(self.points.loss)

    @property
    def objective(self) -> float:
        """The sum of the Huber losses."""
        return sum_huber(self.residuals, self.delta)

    @property
    def deviation(self) -> float:
        """Robust standard deviation of residuals, by their median size.

        As many of the smallest as there are fitted parameters do not count: a robust
        fit passes through so many points. Hill and Holland 1977, JASA 72(360).
        """
        sizes = np.sort(abs(self.residuals))[len(self.free) :]
        return MAD_TO_DEVIATION * float(np.median(sizes))

    @cached_property
    def free(self) -> np.ndarray:
        """The indices of parameters that were fitted."""
        names = self.law.names()
        return np.array([i for i, x in enumerate(names) if x not in self.pinned])

    def jacobian(self, points: Points) -> Float[np.ndarray, "points free"]:
        """Derivatives of the log loss by the fitted parameters."""
        predict = partial(self.law.log_loss, points=points)
        return differentiate(predict, self.params, self.free)

    @property
    def _within(self) -> float:
        """E[psi'] of the Huber loss for normal residuals."""
        return math.erf(self.delta / max(self.deviation, TINY) / math.sqrt(2))

    @cached_property
    def variance(self) -> float:
        """The asymptotic variance of one observation, E[psi^2] / E[psi']^2.

        Huber and Ronchetti 2009, Robust Statistics, section 7.6.
        """
        psi = np.clip(self.residuals, -self.delta, self.delta)
        mean = max(float(psi @ psi), TINY) / (len(self.points) - len(self.free))
        return mean / self._within**2

    @property
    def scale(self) -> float:
        """The objective that half a log likelihood ratio of 1 stands for.

        Heritier and Ronchetti 1994, Journal of the American Statistical Association
        89(427), section 3.
        """
        return self.variance * self._within

    @cached_property
    def covariance(self) -> Float[np.ndarray, "free free"]:
        """Of the fitted parameters, if the law is nearly linear in them."""
        jacobian = self.jacobian(self.points)
        return self.variance * np.linalg.pinv(jacobian.T @ jacobian)


def fit_law(
    law: Law,
    points: Points,
    delta: float = DELTA,
    pinned: Mapping[str, float] | None = None,
) -> Fit:
    """The fit of a law, the best from several starts."""
    pinned = pinned or {}
    require(delta > 0, f"delta is {delta}, and must be above 0.")
    names = law.names()
    known = ("E", *law.shapes) if "E" in names else (*law.shapes,)
    for name, value in pinned.items():
        message = f"{name} cannot be pinned: one of {', '.join(known)} can."
        require(name in known, message)
        require(value > 0, f"{name} is pinned to {value}, and must be above 0.")
    fits = []
    for start in law.list_starts(points)[:STARTS]:
        for name, value in pinned.items():
            start[names.index(name)] = math.log(value) if name == "E" else value
        fits.append(refine(Fit(law, points, start, delta, (), pinned)))
    best = min(fits, key=lambda fit: fit.objective)
    return replace(best, objectives=tuple(fit.objective for fit in fits))


def sum_huber(residuals: np.ndarray, delta: float) -> float:
    """The sum of Huber losses: half the square, linear beyond delta."""
    size = abs(residuals)
    return float(np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum())


def differentiate(
    quantity: Quantity, params: np.ndarray, free: np.ndarray
) -> np.ndarray:
    """Derivatives [..., free] by complex steps. Squire and Trapp 1998."""
    steps = params + 1j * STEP * np.eye(len(params))[free]
    return np.imag(quantity(steps)).T / STEP


def refine(
    fit: Fit, tolerance: float = EXACT, constraint: Constraint | None = None
) -> Fit:
    """The fit from these parameters on.

    A constraint is one more residual, with so large a weight that the Huber loss, which
    is linear far from 0, is an exact penalty. Han and Mangasarian 1979, Mathematical
    Programming 17.
    """
    law, points, free = fit.law, fit.points, fit.free
    params, observed = fit.params.copy(), np.log(points.loss)

    def residuals(values: np.ndarray) -> np.ndarray:
        params[free] = values
        rows = law.log_loss(params, points) - observed
        return np.append(rows, constraint.miss(params)) if constraint else rows

    def jacobian(values: np.ndarray) -> np.ndarray:
        params[free] = values
        rows = differentiate(lambda x: law.log_loss(x, points), params, free)
        if constraint is None:
            return rows
        return np.vstack((rows, differentiate(constraint.miss, params, free)))

    options: dict[str, Any] = {"jac": jacobian, "x_scale": "jac", "max_nfev": 1000}
    options |= {"ftol": tolerance, "xtol": tolerance, "gtol": None}
    options |= {"loss": "huber", "f_scale": fit.delta}
    with np.errstate(all="ignore"):
        params[free] = least_squares(residuals, fit.params[free], **options).x
    return replace(fit, params=params)


def bootstrap(fit: Fit, draws: int, seed: int = 0) -> Float[np.ndarray, "draws P"]:
    """Parameters fitted to points that are drawn with replacement.

    Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 9.5 (pairs).
    """
    seeds = np.random.SeedSequence(seed).spawn(draws)
    draw = partial(_draw, fit)
    workers = min(os.cpu_count() or 1, draws // PARALLEL)
    if workers < 2:
        return np.array([draw(each) for each in seeds])
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        return np.array([*pool.map(draw, seeds, chunksize=draws // workers)])


def _draw(fit: Fit, seed: np.random.SeedSequence) -> np.ndarray:
    size = len(fit.points)
    drawn = fit.points.select(np.random.default_rng(seed).integers(0, size, size))
    return refine(replace(fit, points=drawn), ROUGH).params


def estimate(fit: Fit, samples: np.ndarray, quantity: Quantity) -> Estimate:
    """A quantity of the law, with the 95% percentile interval of bootstrap samples."""
    with np.errstate(all="ignore"):
        values = np.clip(quantity(samples), -HUGE, HUGE)  # infinities have no middle
        low, high = np.nanpercentile(values, (2.5, 97.5))
    return Estimate(float(quantity(fit.params)), float(low), float(high))


def profile(fit: Fit, quantity: Quantity) -> Estimate:
    """A quantity of the law, with the 95% interval of its profile likelihood.

    Its ends are where the likelihood ratio to the best fit has the quantile of F(1,
    points - parameters). Bates and Watts 1988, Nonlinear Regression Analysis, 6.1.
    """
    value = float(quantity(fit.params))
    gradient = differentiate(quantity, fit.params, fit.free)
    error = math.sqrt(max(gradient @ fit.covariance @ gradient, 0.0))
    if not 0 < error < math.inf:
        return Estimate(value, -math.inf, math.inf)
    degrees = len(fit.points) - len(fit.free)
    wanted = float(stats.t.ppf(0.975, degrees))
    direction = fit.covariance @ gradient / error**2  # of the parameters, per unit
    constraint = Constraint(quantity, value, PENALTY * fit.deviation / error)
    ends = [
        _find_end(fit, constraint, direction, sign * error, wanted) for sign in (-1, 1)
    ]
    return Estimate(value, *ends)


def _find_end(
    fit: Fit,
    constraint: Constraint,
    direction: np.ndarray,
    error: float,
    wanted: float,
) -> float:
    """Where the root of the likelihood ratio, nearly linear, is the wanted quantile."""
    distance, reached, near = wanted * error, 0.0, fit
    for _ in range(MAX_STEPS):
        params = near.params.copy()
        params[fit.free] += direction * (distance - reached)
        target = constraint._replace(value=constraint.value + distance)
        with np.errstate(all="ignore"):
            rows = fit.law.log_loss(params, fit.points), target.miss(params)
        if not all(np.isfinite(x).all() for x in rows):  # not in the domain of the law
            params = near.params
        near, reached = refine(replace(near, params=params), ROUGH, target), distance
        ratio = 2 * (near.objective - fit.objective) / fit.scale
        root = math.sqrt(max(ratio, 1e-6))
        if abs(root / wanted - 1) < 0.01:
            return constraint.value + distance
        distance *= min(max(wanted / root, 0.3), 3.0)
    return math.copysign(math.inf, error)
