"""Fits of scaling laws: published data and constants, coverage of intervals, and time.

    python benchmarks/fit.py DATA_DIR [--trials 400]

DATA_DIR has chinchilla_points.csv (Besiroglu et al. 2024), isoflop_points.csv (Porian
et al. 2024), gemstones_*.csv (McLeish et al. 2025) and spectral_*.csv; a file that is
not there is left out. Each line has what lmx finds and what was published.
"""

import argparse
import csv
import sys
import time
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from lmx.study.check import compare, find_outliers
from lmx.study.fit import Fit, bootstrap, fit_law, profile, sum_huber
from lmx.study.isoflop import fit_exponent, fit_isoflop
from lmx.study.law import Chinchilla
from lmx.study.points import Points, make_points, read_points
from lmx.study.report import make_report

HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
BESIROGLU = {"E": 1.817, "A": 482.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366}
PORIAN = {  # the exponent of N over C of each setting
    "base,long,kaplan,kaplan,train": 0.835,
    "base,long,kaplan,standard,val": 0.707,
    "base,short,kaplan,standard,val": 0.602,
    "base,short,chinchilla,standard,val": 0.572,
    "tuned,short,const,standard,val": 0.497,
}
GEMSTONES = {  # exponents alpha and beta
    "cool_end": (0.3003, 0.5802),
    "hot": (0.2929, 0.7129),
}
COLUMNS = ("hparams", "warmup", "decay", "param_count", "split")


def show(name: str, found: str, published: str) -> None:
    """Prints a line of the table."""
    print(f"{name:46} {found:34} {published}", flush=True)


def fit_chinchilla(points: Points, delta: float = 1e-3) -> Fit:
    """The parametric fit."""
    return fit_law(Chinchilla.build(points), points, delta)


def run_chinchilla(file: Path) -> None:
    """The points of Hoffmann et al. against the parameters of Besiroglu et al."""
    points = read_points(file, {})
    outliers = points.loss[find_outliers(fit_chinchilla(points))]
    largest = set(np.sort(points.loss)[-5:])
    found = f"{len(largest & set(outliers))} of 5, and {len(outliers) - 5} others"
    show("outliers among all 245 points", found, "the five largest losses")
    points = points.select(np.argsort(points.loss)[:-5])
    start = time.perf_counter()
    report = make_report(fit_chinchilla(points))
    seconds = time.perf_counter() - start
    show("240 points: objective", f"{report.fit.objective:.7g}", "at most 1.0183e-3")
    for name, value in BESIROGLU.items():
        value_, low, high = report.parameters[name].likelihood
        inside = "inside" if low <= value <= high else "OUTSIDE"
        show(name, f"{value_:.5g} ({low:.5g} to {high:.5g})", f"{value:g}: {inside}")
    other = compare(report.fit, HOFFMANN)
    place = "excluded" if other.is_excluded else "NOT EXCLUDED"
    show("Hoffmann's parameters, likelihood ratio", f"{other.ratio:.0f}", place)
    show("report with 1,000 draws, seconds", f"{seconds:.1f}", "under 10")


def run_isoflop(file: Path) -> None:
    """Exponents of compute-optimal sizes by isoFLOP parabolas."""
    for setting, published in PORIAN.items():
        pairs = zip(COLUMNS, setting.split(","), strict=True)
        law = fit_isoflop(read_points(file, {}, [f"{x}={y}" for x, y in pairs]))
        assert law is not None
        found = "{:.3f} ({:.3f} to {:.3f})".format(*law)
        show(setting, found, f"{published:g}: {law.value - published:+.3f}")


def run_gemstones(file: Path, name: str) -> None:
    """Exponents, and a fit that stops early."""
    points = read_points(file, {})
    fit = fit_chinchilla(points)
    found = "{:.4f}, {:.4f}".format(*fit.params[3:])
    published = "{:.4f}, {:.4f}".format(*GEMSTONES[name])
    show(f"gemstones {name}: alpha, beta", found, published)
    if name != "cool_end":
        return
    fit = fit_chinchilla(points, 1e-4)
    show("the same with delta 1e-4: objective", f"{fit.objective:.10f}", ".0002059406")
    # As in the papers: L-BFGS of the mean from a start of theirs.
    start = [np.log(2.0), 5.0, 10.0, 0.3, 0.5]
    logs = np.log(points.n), np.log(points.d), np.log(points.loss)

    def mean_huber(p: np.ndarray) -> float:
        terms = p[0] + 0 * logs[0], p[1] - p[3] * logs[0], p[2] - p[4] * logs[1]
        residuals = np.logaddexp.reduce(terms) - logs[2]
        return sum_huber(residuals, 1e-4) / len(points)

    p = minimize(mean_huber, start, method="L-BFGS-B").x
    values = dict(zip(fit.law.names(), [*np.exp(p[:3]), *p[3:]], strict=True))
    other = compare(fit, values)
    flag = "stopped early" if other.stopped_early else "NOT FLAGGED"
    show("L-BFGS of the mean: objective", f"{other.objective:.10f}", flag)


def run_spectral(points: Path, table: Path) -> None:
    """Slopes of log-log fits and their t intervals."""
    with table.open(newline="") as file:
        published = list(csv.DictReader(file))
    with points.open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = ("paper_experiment", "model_scale", "optimizer_variant", "metric")
    worst = 0.0
    for line in published:
        some = [row for row in rows if all(row[key] == line[key] for key in keys)]
        x = [float(row["ffn_hidden_dim"]) for row in some]
        law = fit_exponent(x, [float(row["value"]) for row in some])
        assert law is not None
        wanted = [float(line[x]) for x in ("beta", "beta_lower", "beta_upper")]
        worst = max(worst, float(np.abs(np.subtract(law, wanted)).max()))
    found = f"off by at most {worst:.1e}"
    show(f"{len(published)} spectral slopes and t intervals", found, "published")


def run_trials(count: int) -> None:
    """How often intervals cover the truth: ladders of 5 x 8 with noise of 0.5%."""
    names = ("alpha", "beta", "optimal N at 10 times", "its loss")
    covered, log_nd = np.zeros((2, len(names))), np.log(3e21 / 6)
    for trial in range(count):
        rng = np.random.default_rng(trial)
        alpha, beta = rng.uniform(0.25, 0.45, 2)
        log_n, reducible = np.log(4e8) + rng.normal(0, 0.3), rng.uniform(0.7, 1.3)
        log_d = np.log(3e19 / 6) - log_n  # where N is optimal
        shares = np.array([beta, alpha]) / (alpha + beta) * reducible
        law = Chinchilla(log_n, log_d, 0.0)
        params = np.array([np.log(rng.uniform(1.5, 2.2)), *np.log(shares), alpha, beta])
        c = np.repeat(np.geomspace(3e18, 3e20, 5), 8)
        best = np.array([law.log_optimal_n(params, x) for x in np.log(c / 6)])
        n = np.exp(best + np.tile(np.linspace(-1.7, 1.7, 8), 5))
        points = make_points(n, c / 6 / n)
        noise = 0.005 * rng.normal(size=len(n))
        fit = fit_chinchilla(
            points.with_loss(np.exp(law.log_loss(params, points) + noise))
        )
        truth = float(law.log_optimal_n(params, log_nd))
        at = make_points(np.exp([truth]), np.exp([log_nd - truth]))
        quantities = (
            (lambda p: p[..., 3], alpha),
            (lambda p: p[..., 4], beta),
            (lambda p, fit=fit: fit.law.log_optimal_n(p, log_nd), truth),
            (
                lambda p, fit=fit, at=at: fit.law.log_loss(p, at)[..., 0],
                float(law.log_loss(params, at)[0]),
            ),
        )
        samples = bootstrap(fit, 99, trial)
        for column, (quantity, value) in enumerate(quantities):
            _, low, high = profile(fit, quantity)
            covered[0, column] += low <= value <= high
            low, high = np.percentile(quantity(samples), (2.5, 97.5))
            covered[1, column] += low <= value <= high
        if sys.stderr.isatty():
            print(f"\r{trial + 1} of {count} trials", end="", file=sys.stderr)
    for name, likelihood, drawn in zip(names, *covered / count, strict=True):
        show(f"{name}: covered in", f"{likelihood:.1%} ({drawn:.1%} bootstrap)", "95%")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--trials", type=int, default=0)
    args = parser.parse_args()
    files = {x.name: x for x in args.data.glob("*.csv")} if args.data else {}
    show("", "lmx", "published")
    if file := files.get("chinchilla_points.csv"):
        run_chinchilla(file)
    if file := files.get("isoflop_points.csv"):
        run_isoflop(file)
    for name in GEMSTONES:
        if file := files.get(f"gemstones_{name}.csv"):
            run_gemstones(file, name)
    spectral = [
        files.get(f"spectral_{x}.csv")
        for x in ("global_rank_scaling_points", "main_beta_table")
    ]
    if all(spectral):
        run_spectral(*filter(None, spectral))
    if args.trials:
        run_trials(args.trials)


if __name__ == "__main__":
    main()
