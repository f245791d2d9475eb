"""The report of a fit: its parameters, optima and predictions, and doubts about it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmx.config.registry import require
from lmx.core.console import format_table
from lmx.core.files import open_atomic
from lmx.study.check import (
    Backtest,
    Comparison,
    NextRun,
    backtest,
    find_outliers,
    list_warnings,
    prediction_error,
    suggest_runs,
)
from lmx.study.fit import (
    Estimate,
    Fit,
    Quantity,
    bootstrap,
    differentiate,
    estimate,
    profile,
)
from lmx.study.isoflop import fit_frontier, fit_isoflop, fit_parabolas
from lmx.study.points import FLOPS, make_points

HEADER = ("", "value", "95% (likelihood)", "95% (bootstrap)")


class Measured(NamedTuple):
    """A quantity with the intervals of its profile likelihood and of the bootstrap."""

    likelihood: Estimate
    bootstrap: Estimate

    def map(self, function: Any) -> "Measured":
        """The same of an increasing function of the quantity."""
        return Measured(self.likelihood.map(function), self.bootstrap.map(function))

    def to_json(self) -> dict[str, float]:
        """Value, ends of the likelihood interval, and those of the bootstrap."""
        low, high = self.bootstrap[1:]
        values = self.likelihood._asdict()
        return {**values, "bootstrap_low": low, "bootstrap_high": high}

    def format(self, digits: int = 4) -> list[str]:
        """Cells of a table."""
        cells = [[f"{x:.{digits}g}" for x in estimate] for estimate in self]
        return [cells[0][0], *(f"{low} to {high}" for _, low, high in cells)]


class Optimum(NamedTuple):
    """The compute-optimal run of a budget."""

    c: float
    n: Measured
    tokens: float
    loss: Measured


class Prediction(NamedTuple):
    """The loss of a run, and the 95% interval of a single run with its noise.

    N and D are None where the law is of C alone.
    """

    n: float | None
    d: float | None
    c: float
    loss: Measured
    run: Estimate


@dataclass(frozen=True, eq=False)
class FitReport:
    """What is known of a law after its fit. Intervals are of 95%."""

    fit: Fit
    parameters: Mapping[str, Measured]
    optima: Sequence[Optimum]
    predictions: Sequence[Prediction]
    exponents: Mapping[str, Estimate | None]
    backtests: Sequence[Backtest]
    next_runs: Sequence[NextRun]
    warnings: Sequence[str]


def make_report(
    fit: Fit,
    budgets: Sequence[float] = (),
    runs: Sequence[tuple[float, float]] = (),
    draws: int = 1000,
    seed: int = 0,
) -> FitReport:
    """Measures a fit. Optima are of the largest budget and ten times it by default."""
    points, law = fit.points, fit.law
    samples = bootstrap(fit, draws, seed)
    parameters = {
        name: _measure_parameter(fit, samples, name)
        for name in law.report(fit.params)
        if name not in fit.pinned
    }
    largest = float(points.c.max())
    has_optimum = law.log_optimal_n(fit.params, 0.0) is not None
    require(
        has_optimum or "n" not in law.varies or not budgets,
        f"{law.title} does not say which N and D are optimal for a budget: give N and D"
        " with --predict.",
    )
    budgets = budgets or (largest, 10 * largest)
    optima = [_find_optimum(fit, samples, c) for c in budgets if has_optimum]
    asked = [(n, d, FLOPS * n * d) for n, d in runs]
    asked += [(None, None, c) for c in budgets if "n" not in law.varies]
    target = partial(_optimal_loss, fit, 10 * largest)
    suggested = []
    if has_optimum:
        gradient = differentiate(target, fit.params, fit.free)
        suggested = suggest_runs(fit, gradient, largest)
    exponents = {"frontier": fit_frontier(points), "isoFLOP": fit_isoflop(points)}
    tests = [backtest(fit, field) for field in ("c", "n") if field in law.varies]
    asymptote = parameters["E"].likelihood if "E" in parameters else None
    return FitReport(
        fit,
        parameters,
        optima,
        [_predict(fit, samples, *each) for each in asked],
        exponents if has_optimum else {},
        [test for test in tests if test],
        suggested,
        list_warnings(fit, asymptote),
    )


def _measure(fit: Fit, samples: np.ndarray, quantity: Quantity) -> Measured:
    return Measured(profile(fit, quantity), estimate(fit, samples, quantity))


def _measure_parameter(fit: Fit, samples: np.ndarray, name: str) -> Measured:
    """By its log where it is positive: the ends are the same, and found sooner."""
    if fit.law.report(fit.params)[name] <= 0:
        return _measure(fit, samples, lambda p: fit.law.report(p)[name])
    log = _measure(fit, samples, lambda p: np.log(fit.law.report(p)[name]))
    return log.map(np.exp)


def _optimal_loss(fit: Fit, c: float, params: np.ndarray) -> np.ndarray:
    """The log of the lowest loss for FLOPs."""
    log_nd = math.log(c / fit.points.flops_per_token)
    log_n = fit.law.log_optimal_n(params, log_nd)[..., None]
    best = make_points(np.exp(log_n), np.exp(log_nd - log_n))
    return fit.law.log_loss(params, best)[..., 0]


def _find_optimum(fit: Fit, samples: np.ndarray, c: float) -> Optimum:
    log_nd = math.log(c / fit.points.flops_per_token)
    log_n = _measure(fit, samples, lambda p: fit.law.log_optimal_n(p, log_nd))
    loss = _measure(fit, samples, partial(_optimal_loss, fit, c)).map(math.exp)
    n = log_n.map(math.exp)
    return Optimum(c, n, math.exp(log_nd) / n.likelihood.value, loss)


def _predict(
    fit: Fit, samples: np.ndarray, n: float | None, d: float | None, c: float
) -> Prediction:
    point = make_points(np.array([n or 1.0]), np.array([d or 1.0]), c=[c])
    log_loss = _measure(fit, samples, lambda p: fit.law.log_loss(p, point)[..., 0])
    value, error = log_loss.likelihood.value, float(prediction_error(fit, point)[0])
    run = Estimate(value, value - error, value + error).map(math.exp)
    return Prediction(n, d, c, log_loss.map(math.exp), run)


def to_plain(value: Any) -> Any:
    """Named tuples as dicts, for JSON; infinite ends of intervals are None."""
    if isinstance(value, Measured):
        return to_plain(value.to_json())
    if hasattr(value, "_asdict"):
        return to_plain(value._asdict())
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(report: FitReport, comparison: Comparison | None) -> dict[str, Any]:
    """All of a report as JSON data."""
    fit = report.fit
    return to_plain(
        {
            "law": fit.law.title,
            "points": len(fit.points),
            "delta": fit.delta,
            "objective": fit.objective,
            "deviation": fit.deviation,
            "pinned": fit.pinned,
            "parameters": report.parameters,
            "optima": report.optima,
            "predictions": report.predictions,
            "exponents": report.exponents,
            "backtests": report.backtests,
            "next_runs": report.next_runs,
            "outliers": fit.points.rows[find_outliers(fit)].tolist(),
            "warnings": report.warnings,
            "comparison": comparison,
        }
    )


def format_report(report: FitReport, comparison: Comparison | None) -> str:
    """A report as text."""
    fit, points = report.fit, report.fit.points
    ranges = ", ".join(
        f"{name} {values.min():.3g} to {values.max():.3g}"
        for name, values in (("N", points.n), ("D", points.d), ("C", points.c))
    )
    sections = [
        f"{len(points)} runs: {ranges}\n{fit.law.title}\n"
        f"objective {fit.objective:.8g} (sum of Huber losses of log residuals, delta"
        f" {fit.delta:g}); residuals {fit.deviation:.2%} (robust)",
        format_table(HEADER, ([x, *y.format()] for x, y in report.parameters.items())),
    ]
    if report.optima:
        sections.append(_format_optima(report))
    if report.exponents:
        sections.append(_format_exponents(report))
    for n, d, c, loss, run in report.predictions:
        value, *intervals = loss.format(5)
        given = f"C {c:.4g}" if n is None else f"N {n:.4g}, D {d:.4g}"
        sections.append(
            f"{given}: loss {value}; the law {intervals[0]} (likelihood),"
            f" {intervals[1]} (bootstrap); a single run {run.low:.5g} to {run.high:.5g}"
        )
    if comparison:
        sections.append(_format_comparison(comparison))
    tests = [
        f"without the largest {x.held_out}: {x.points} points, error {x.error:.2%},"
        f" bias {x.bias:+.2%}, {x.covered:.0%} within their 95% intervals"
        for x in report.backtests
    ]
    runs = [
        f"N {x.n:.3g}, D {x.d:.3g}: interval of the loss at ten times the largest"
        f" budget x {x.factor:.2f}"
        for x in report.next_runs
    ]
    lists = {"Backtest": tests, "Next runs, each with those before": runs}
    sections += ["\n".join((title, *x)) for title, x in lists.items() if x]
    sections += [f"warning: {warning}" for warning in report.warnings]
    return "\n\n".join(sections)


def _format_optima(report: FitReport) -> str:
    rows = []
    for c, n, tokens, loss in report.optima:
        value, ends, _ = n.format(3)
        lowest, loss_ends, _ = loss.format()
        ratio = f"{tokens / n.likelihood.value:.3g}"
        rows.append(
            (f"{c:.3g}", value, ends, f"{tokens:.3g}", ratio, lowest, loss_ends)
        )
    header = ("C", "optimal N", "95%", "D", "D / N", "loss", "95%")
    return format_table(header, rows)


def _format_exponents(report: FitReport) -> str:
    rows = [
        (name, *(f"{x:.3f}" for x in found)) if found else (name, "-", "-", "-")
        for name, found in report.exponents.items()
    ]
    if "a" in report.parameters:
        rows.append(("law", *(f"{x:.3f}" for x in report.parameters["a"].likelihood)))
    return format_table(("optimal N ~ C^a by", "a", "low", "high"), rows)


def _format_comparison(comparison: Comparison) -> str:
    place = "outside" if comparison.is_excluded else "within"
    text = (
        f"The parameters given: objective {comparison.objective:.8g}, {place} the joint"
        f" 95% region (likelihood ratio {comparison.ratio:.1f}, limit"
        f" {comparison.limit:.1f})."
    )
    if comparison.stopped_early:
        text += (
            f" An optimizer that ended there stopped early: from there a fit reaches"
            f" {comparison.refined:.8g}."
        )
    return text


def plot_fit(report: FitReport, file: Path) -> None:
    """Writes isoFLOP parabolas, the frontier, residuals and intervals as a PNG."""
    from matplotlib.figure import Figure

    points, fit = report.fit.points, report.fit
    figure = Figure(figsize=(12, 9), layout="constrained", dpi=120)
    (top, right), (bottom, corner) = figure.subplots(2, 2)
    colors = {"c": np.log10(points.c), "cmap": "viridis", "s": 12}
    parabolas = fit_parabolas(points)
    runs = top.scatter(points.n, points.loss, **colors)
    budgets = [points.c[points.budgets == x].max() for x in set(points.budgets)]
    some = [math.log10(c) for c in sorted(budgets)[:: -(-len(budgets) // 8)]]
    handles, labels = runs.legend_elements(num=some, fmt="C = $10^{{{x:.1f}}}$")
    if parabolas:
        handles += top.plot([], [], "k-", [], [], "r*")
        labels += ["fitted curve", "optimum"]
    top.legend(handles, labels, fontsize="small")
    for parabola in parabolas:
        x = np.linspace(parabola.low, parabola.high, 50)
        top.plot(np.exp(x), np.polyval(parabola.coefficients, x), "k-", linewidth=0.6)
        if not parabola.at_edge:
            top.plot(np.exp(parabola.log_n), parabola.loss, "r*")
    top.set(xscale="log", xlabel="N, parameters", ylabel="loss", title="budgets")
    low, high = np.quantile(points.loss, (0, 0.98))
    top.set_ylim(low - 0.05 * (high - low), high)
    right.scatter(points.c, points.loss, s=8, color="gray", label="runs")
    if report.optima:
        c = np.geomspace(points.c.min(), max(x.c for x in report.optima), 50)
        best = [math.exp(_optimal_loss(fit, x, fit.params)) for x in c]
        right.plot(c, best, "r-", label="compute-optimal, by the law")
        for c, _, _, loss in report.optima:
            value, low, high = loss.likelihood
            right.errorbar(c, value, [[value - low], [high - value]], fmt="r.")
        right.legend()
    right.set(xscale="log", xlabel="C, FLOPs", ylabel="loss", title="frontier")
    bottom.axhline(0, color="gray", linewidth=0.8)
    shown = bottom.scatter(points.n, 100 * fit.residuals, **colors)
    figure.colorbar(shown, ax=bottom, label="log10 C")
    bottom.set(xscale="log", xlabel="N", ylabel="predicted - observed, %")
    limit = 100 * 6 * fit.deviation
    bottom.set(title="residuals", ylim=(-limit, limit))
    _plot_parameters(corner, report)
    with open_atomic(file) as opened:
        figure.savefig(opened, format="png")


def _plot_parameters(axes: Any, report: FitReport) -> None:
    """Each parameter's intervals, relative to its value."""
    for row, measured in enumerate(report.parameters.values()):
        for shift, (value, low, high) in zip((-0.1, 0.1), measured, strict=True):
            ends = np.maximum([[value - low], [high - value]], 0) / abs(value)
            color = "C0" if shift < 0 else "C1"
            axes.errorbar(1.0, row + shift, xerr=ends, fmt="o", color=color)
    axes.set_yticks(range(len(report.parameters)), list(report.parameters))
    axes.set(xlabel="relative to the estimate", title="95%: likelihood, bootstrap")
