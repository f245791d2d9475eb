"""Plots the metrics of a run."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lmx.core.files import open_atomic
from lmx.run.run_dir import find_losses, read_metrics

Curve = tuple[list[int], list[float]]  # steps and values


def plot_run(path: Path) -> None:
    """Writes `plots/loss.png` of a run, if something was logged."""
    from matplotlib.figure import Figure

    rows = list(read_metrics(path))
    names = dict.fromkeys(name for row in rows for name in row)
    unit = "nats per token" if "nats" in names else "loss"
    train = extract_curve(rows, unit.split()[0])
    if not train[0]:
        return
    losses = find_losses(names)
    curves = {name: extract_curve(rows, loss) for name, loss in losses.items()}
    figure = Figure(figsize=(11, 4), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2)
    left.plot(*train, color="tab:blue", alpha=0.35, linewidth=0.8)
    left.plot(*smooth(train), color="tab:blue", label="training")
    for color, (name, curve) in enumerate(curves.items(), 1):
        left.plot(*curve, "o-", color=f"C{color}", label=name)
    left.set(xlabel="step", ylabel=unit, title=path.name)
    left.set_ylim(top=_upper_limit(train, *curves.values()))
    left.legend()
    _plot_right(right, rows, losses)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    (path / "plots").mkdir(exist_ok=True)
    with open_atomic(path / "plots" / "loss.png") as file:
        figure.savefig(file, format="png")


def _plot_right(
    axes: Any, rows: list[dict[str, Any]], evaluations: Iterable[str]
) -> None:
    """Plots bits per byte next to those of compressors; gradient norms without text."""
    curves = {n: extract_curve(rows, f"{n}/bits_per_byte") for n in evaluations}
    if not any(steps for steps, _ in curves.values()):
        axes.plot(*extract_curve(rows, "grad_norm"), color="tab:green")
        axes.set(xlabel="step", ylabel="gradient norm", yscale="log")
        return
    for color, (evaluation, bits) in enumerate(curves.items(), 1):
        last = "".join(f": {value:.3f}" for value in bits[1][-1:])
        axes.plot(*bits, "o-", color=f"C{color}", label=f"{evaluation}{last}")
        for name, style in (("zlib", "--"), ("xz", ":")):
            _, level = extract_curve(rows, f"{evaluation}/{name}_bits_per_byte")
            if level:
                label = f"{name}: {level[-1]:.3f}"
                axes.axhline(level[-1], color="gray", linestyle=style, label=label)
    axes.set(xlabel="step", ylabel="bits per byte of text")
    axes.legend()


def extract_curve(rows: list[dict[str, Any]], name: str) -> Curve:
    """The steps at which a metric was logged, and its values, where they are finite."""
    rows = [row for row in rows if math.isfinite(float(row.get(name, "nan")))]
    return [row["step"] for row in rows], [float(row[name]) for row in rows]


def smooth(curve: Curve) -> Curve:
    """The mean of each point and those before it, 5% of all."""
    steps, values = curve
    window = max(len(values) // 20, 1)
    counts = np.minimum(np.arange(len(values)) + 1, window)
    sums = np.convolve(values, np.ones(window))[: len(values)]
    return steps, (sums / counts).tolist()


def _upper_limit(*curves: Curve) -> float:
    """Slightly above most points, so that the first few do not set the scale."""
    values = [value for _, values in curves for value in values]
    return 1.05 * float(np.quantile(values, 0.98))
