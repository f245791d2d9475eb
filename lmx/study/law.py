"""Scaling laws: forms of the loss as a function of parameters, tokens and FLOPs."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import nnls

from lmx.config.registry import require
from lmx.study.points import Points, make_points

EXPONENTS = np.arange(0.1, 1.25, 0.1)  # of starts of a fit
SAME = 1.01  # ratio of values that do not differ
SMALLEST = 1e-6  # coefficient at the start of a fit
REPEATS = np.array([3.0, 10.0, 30.0])
Shape = Sequence[Any]  # shape parameters, each [..., 1]


@dataclass(frozen=True)
class Law(ABC):
    """A loss that is a sum of positive terms, or a power of one.

    The vector of parameters is the log of each coefficient, at the geometric mean of
    the points, and then the shape parameters: coefficients and exponents are nearly
    independent of each other. A law computes with complex numbers, too.

    Attributes:
        n0, d0, c0: logs of the geometric means of parameters, tokens and FLOPs.
    """

    n0: float
    d0: float
    c0: float

    title: ClassVar[str]
    varies: ClassVar[tuple[str, ...]]  # fields of `Points` that must not be all equal
    coefficients: ClassVar[tuple[str, ...]]
    shapes: ClassVar[Mapping[str, np.ndarray]]  # and the values that fits start with

    @classmethod
    def build(cls, points: Points) -> "Law":
        """The law with its origin at the mean of these points."""
        for name in cls.varies:
            values = getattr(points, name)
            require(
                values.max() > SAME * values.min(),
                f"{cls.title} needs runs of several values of {name.upper()}, and all"
                f" rows have {values.flat[0]:.4g}.",
            )
        least = len(cls.names()) + 1
        message = f"{cls.title} has {least - 1} parameters, and {len(points)} points"
        require(len(points) >= least, f"{message} cannot determine them.")
        return cls(*(float(np.log(x).mean()) for x in (points.n, points.d, points.c)))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the parameters, in the order of their vector."""
        return (*cls.coefficients, *cls.shapes)

    @abstractmethod
    def log_terms(self, logs: Shape, shape: Shape, points: Points) -> Sequence[Any]:
        """The logs of the terms, each [..., points], without their coefficients.

        `logs` are those of the coefficients.
        """

    def offsets(self, shape: Shape) -> Sequence[Any]:
        """The logs of the coefficients, minus those at the origin of the law."""
        del shape
        return (0.0,) * len(self.coefficients)

    def report(self, params: np.ndarray) -> dict[str, np.ndarray]:
        """The published parameters, each [...], of vectors [..., parameters]."""
        logs, shape = self._split(params)
        pairs = zip(logs, self.offsets(shape), strict=True)
        values = [*(np.exp(log + offset) for log, offset in pairs), *shape]
        return {x: value[..., 0] for x, value in zip(self.names(), values, strict=True)}

    def parse(self, published: Mapping[str, float]) -> np.ndarray:
        """The vector of published parameters: the inverse of `report`."""
        values = self._require_all(published)
        count = len(self.coefficients)
        is_valid = (values[:count] > 0).all()
        require(is_valid, f"{', '.join(self.coefficients)} must be above 0.")
        shape = [*values[count:]]
        return np.array([*(np.log(values[:count]) - self.offsets(shape)), *shape])

    def _require_all(self, published: Mapping[str, float]) -> np.ndarray:
        names = self.names()
        missing = [name for name in names if name not in published]
        message = f"{self.title} needs {', '.join(names)}"
        require(not missing, f"{message}: {', '.join(missing)} is missing.")
        return np.array([published[name] for name in names], float)

    def power(self, shape: Shape) -> Any:
        """The exponent of the sum."""
        del shape
        return 1.0

    def log_loss(self, params: np.ndarray, points: Points) -> np.ndarray:
        """The log of the loss, [..., points], of vectors [..., parameters]."""
        logs, shape = self._split(params)
        terms = zip(logs, self.log_terms(logs, shape, points), strict=True)
        return self.power(shape) * np.log(sum(np.exp(a + b) for a, b in terms))

    def log_optimal_n(self, params: np.ndarray, log_nd: float) -> Any:
        """The log of the N of the lowest loss, [...], where log(N D) is given.

        None if the law does not say which N and D are optimal.
        """
        del params, log_nd

    def _split(self, params: np.ndarray) -> tuple[Shape, Shape]:
        values = list(np.moveaxis(np.asarray(params), -1, 0)[..., None])
        count = len(self.coefficients)
        return values[:count], values[count:]

    def list_starts(self, points: Points) -> list[np.ndarray]:
        """Parameters to start a fit with, the most promising first.

        For each value of the shape parameters the coefficients are those of a linear
        least-squares fit (variable projection. Golub and Pereyra 1973).
        """
        grid = itertools.product(*self.shapes.values())
        starts = [np.array([*self.solve(shape, points), *shape]) for shape in grid]
        observed = np.log(points.loss)
        return sorted(
            starts, key=lambda p: abs(self.log_loss(p, points) - observed).sum()
        )

    def solve(self, shape: Shape, points: Points) -> np.ndarray:
        """The coefficients that fit best, as in the vector of parameters."""
        target = points.loss ** (1 / self.power(shape))
        terms = np.exp(np.stack(self.log_terms((), shape, points), -1))
        solution, _ = nnls(terms / target[:, None], np.ones(len(target)))
        return np.log(np.maximum(solution, SMALLEST))


@dataclass(frozen=True)
class Chinchilla(Law):
    """L = E + A / N^alpha + B / D^beta.

    Hoffmann et al. 2022, arXiv:2203.15556, section 3.3. The compute-optimal N grows as
    C^a with a = beta / (alpha + beta).
    """

    title = "L = E + A / N^alpha + B / D^beta"
    varies = ("n", "d", "c")
    coefficients = ("E", "A", "B")
    shapes = {"alpha": EXPONENTS, "beta": EXPONENTS}

    def log_terms(self, logs: Shape, shape: Shape, points: Points) -> Sequence[Any]:
        alpha, beta = shape
        n, d = np.log(points.n) - self.n0, np.log(points.d) - self.d0
        return 0.0 * n, -alpha * n, -beta * d

    def log_optimal_n(self, params: np.ndarray, log_nd: float) -> Any:
        _, a, b, alpha, beta = np.moveaxis(params, -1, 0)
        d = log_nd - self.n0 - self.d0
        return self.n0 + _balance(a, alpha, b, beta, d)

    def offsets(self, shape: Shape) -> Sequence[Any]:
        return 0.0, shape[0] * self.n0, shape[1] * self.d0

    def report(self, params: np.ndarray) -> dict[str, np.ndarray]:
        values = super().report(params)
        return {**values, "a": values["beta"] / (values["alpha"] + values["beta"])}


def _balance(a: Any, alpha: Any, b: Any, beta: Any, log_nd: float) -> Any:
    """The x that minimizes exp(a - alpha x) + exp(b - beta (log_nd - x))."""
    slopes = np.log(alpha) - np.log(beta)
    return (a - b + slopes + beta * log_nd) / (alpha + beta)


@dataclass(frozen=True)
class Kaplan(Law):
    """L = ((Nc / N)^(alpha_N / alpha_D) + Dc / D)^alpha_D.

    Kaplan et al. 2020, arXiv:2001.08361, equation 1.5.
    """

    title = "L = ((Nc / N)^(alpha_N / alpha_D) + Dc / D)^alpha_D"
    varies = ("n", "d", "c")
    coefficients = ("Nc", "Dc")
    shapes = {"alpha_N": EXPONENTS / 4, "alpha_D": EXPONENTS / 4}

    def power(self, shape: Shape) -> Any:
        return shape[1]

    def log_terms(self, logs: Shape, shape: Shape, points: Points) -> Sequence[Any]:
        alpha_n, alpha_d = shape
        n, d = np.log(points.n) - self.n0, np.log(points.d) - self.d0
        return -alpha_n / alpha_d * n, -d

    def log_optimal_n(self, params: np.ndarray, log_nd: float) -> Any:
        n, d, alpha_n, alpha_d = np.moveaxis(params, -1, 0)
        log_nd = log_nd - self.n0 - self.d0
        return self.n0 + _balance(n, alpha_n / alpha_d, d, 1.0, log_nd)

    def offsets(self, shape: Shape) -> Sequence[Any]:
        return shape[0] / shape[1] * self.n0, self.d0

    def report(self, params: np.ndarray) -> dict[str, np.ndarray]:
        values = super().report(params)
        root = values["alpha_D"] / values["alpha_N"]
        return {**values, "Nc": values["Nc"] ** root}

    def parse(self, published: Mapping[str, float]) -> np.ndarray:
        nc, _, alpha_n, alpha_d = self._require_all(published)
        return super().parse({**published, "Nc": nc ** (alpha_n / alpha_d)})


@dataclass(frozen=True)
class ComputeLaw(Law):
    """L = E + A / C^gamma, of runs that are compute-optimal."""

    title = "L = E + A / C^gamma"
    varies = ("c",)
    coefficients = ("E", "A")
    shapes = {"gamma": EXPONENTS / 2}

    def log_terms(self, logs: Shape, shape: Shape, points: Points) -> Sequence[Any]:
        c = np.log(points.c) - self.c0
        return 0.0 * c, -shape[0] * c

    def offsets(self, shape: Shape) -> Sequence[Any]:
        return 0.0, shape[0] * self.c0


@dataclass(frozen=True)
class RepeatedData(Chinchilla):
    """`Chinchilla` of N and D of which what is repeated is worth less and less.

    D' = U + U R (1 - exp(-(D / U - 1) / R)) for U unique tokens and R = R_D, and N' in
    the same way with R_N, for parameters beyond those that are compute-optimal for U.
    Muennighoff et al. 2023, arXiv:2305.16264, section 3.1.
    """

    title = "L = E + A / N'^alpha + B / D'^beta"
    shapes = {**Chinchilla.shapes, "R_D": REPEATS, "R_N": REPEATS}

    @classmethod
    def build(cls, points: Points) -> Law:
        message = f"{cls.title} needs runs with fewer unique tokens than tokens: name"
        require((points.d > SAME * points.unique).any(), f"{message} their column.")
        return super().build(points)

    def log_optimal_n(self, params: np.ndarray, log_nd: float) -> Any:
        return None  # it depends on the unique tokens

    def log_terms(self, logs: Shape, shape: Shape, points: Points) -> Sequence[Any]:
        alpha, beta, r_d, r_n = shape
        unique, n = np.minimum(points.unique, points.d), points.n
        if logs:  # the compute-optimal N for the unique tokens, or a smaller N
            _, a, b = logs
            u = np.log(unique) - self.d0
            best = np.exp(self.n0 + (a - b + np.log(alpha / beta) + beta * u) / alpha)
            n = _saturate(n, np.where(np.real(best) < n, best, n), r_n)
        d = _saturate(points.d, unique, r_d)
        return super().log_terms(logs, shape[:2], make_points(n, d))


def _saturate(values: Any, unique: Any, half_life: Any) -> Any:
    """What repeated values are worth, in units of unique ones."""
    return unique * (1 + half_life * (1 - np.exp((1 - values / unique) / half_life)))


@dataclass(frozen=True)
class Routed(Law):
    """log L = a log N + b log X + c log N log X + d, for X(E) of E experts.

    Logs are of base 10, and 1 / X = 1 / (E - 1 + 1 / (1 / E_start - 1 / E_max)) + 1 /
    E_max. Clark et al. 2022, arXiv:2202.01169, equations 6 and 7.
    """

    title = "log L = a log N + b log X + c log N log X + d"
    varies = ("n", "experts")
    coefficients = ("a", "b", "c", "d")
    shapes = {"E_start": np.array([1.2, 2.0, 4.0]), "E_max": np.array([200.0, 500.0])}

    def log_terms(self, logs: Shape, shape: Shape, points: Points) -> Sequence[Any]:
        start, largest = shape
        first = 1 / (1 / start - 1 / largest)
        x = -np.log10(1 / (points.experts - 1 + first) + 1 / largest)
        n = (np.log(points.n) - self.n0) / np.log(10)
        return n + 0.0 * x, x, n * x, 1.0 + 0.0 * x

    def log_loss(self, params: np.ndarray, points: Points) -> np.ndarray:
        factors, shape = self._split(params)
        terms = self.log_terms(factors, shape, points)
        return sum(a * b for a, b in zip(factors, terms, strict=True)) * np.log(10)

    def solve(self, shape: Shape, points: Points) -> np.ndarray:
        terms = np.stack(self.log_terms((), shape, points), -1)
        return np.linalg.lstsq(terms, np.log10(points.loss))[0]

    def report(self, params: np.ndarray) -> dict[str, np.ndarray]:
        values = dict(zip(self.names(), np.moveaxis(params, -1, 0), strict=True))
        return self._shift(values, -self.n0 / np.log(10))

    def parse(self, published: Mapping[str, float]) -> np.ndarray:
        self._require_all(published)
        values = self._shift(published, self.n0 / np.log(10))
        return np.array([values[name] for name in self.names()])

    def _shift(self, values: Mapping[str, Any], n: float) -> dict[str, Any]:
        b, d = values["b"] + values["c"] * n, values["d"] + values["a"] * n
        return {**values, "b": b, "d": d}


LAWS: Mapping[str, type[Law]] = {
    "chinchilla": Chinchilla,
    "kaplan": Kaplan,
    "compute": ComputeLaw,
    "repeated": RepeatedData,
    "routed": Routed,
}
