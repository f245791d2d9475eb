"""Pictures of a run, drawn from its metrics."""

import math
from pathlib import Path
from typing import Any

from lmx.run.run_dir import read_metrics

Curve = tuple[list[int], list[float]]


def plot_run(path: Path) -> Path | None:
    """Draws `plots/loss.png` of a run anew; None where nothing was logged yet."""
    from matplotlib.figure import Figure

    lines = list(read_metrics(path))
    train = extract_curve(lines, "nats")
    if not train[0]:
        return None
    figure = Figure(figsize=(11, 4), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2)
    left.plot(*train, color="tab:blue", alpha=0.35, linewidth=0.8)
    left.plot(*smooth(train), color="tab:blue", label="training")
    held_out = extract_curve(lines, "validation/nats")
    if held_out[0]:
        left.plot(*held_out, "o-", color="tab:orange", label="validation")
    left.set(xlabel="step", ylabel="nats per token", title=path.name)
    left.set_ylim(top=_upper_limit(train, held_out))
    left.legend()
    _plot_right(right, lines)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    target = path / "plots" / "loss.png"
    target.parent.mkdir(exist_ok=True)
    fresh = target.with_name(".loss.png")
    figure.savefig(fresh, format="png")
    fresh.replace(target)
    return target


def _plot_right(axes: Any, lines: list[dict[str, Any]]) -> None:
    """Bits per byte beside the compressors', or gradient norms without text."""
    bits = extract_curve(lines, "validation/bits_per_byte")
    if not bits[0]:
        axes.plot(*extract_curve(lines, "grad_norm"), color="tab:green")
        axes.set(xlabel="step", ylabel="gradient norm", yscale="log")
        return
    axes.plot(*bits, "o-", color="tab:orange", label=f"model: {bits[1][-1]:.3f}")
    for name, style in (("zlib", "--"), ("xz", ":")):
        _, level = extract_curve(lines, f"validation/{name}_bits_per_byte")
        if level:
            label = f"{name}: {level[-1]:.3f}"
            axes.axhline(level[-1], color="gray", linestyle=style, label=label)
    axes.set(xlabel="step", ylabel="bits per byte of validation text")
    axes.legend()


def extract_curve(lines: list[dict[str, Any]], name: str) -> Curve:
    """The steps at which a metric was logged, and what it was, where that is finite."""
    found = [(row["step"], float(row[name])) for row in lines if name in row]
    found = [(step, value) for step, value in found if math.isfinite(value)]
    return [step for step, _ in found], [value for _, value in found]


def smooth(points: Curve, share: float = 0.05) -> Curve:
    """A running mean over that share of the points."""
    steps, values = points
    window = max(int(len(values) * share), 1)
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        means.append(total / min(index + 1, window))
    return steps, means


def _upper_limit(*curves: Curve) -> float:
    """A little above what most points reach, so that the first few do not rule."""
    values = sorted(value for _, values in curves for value in values)
    return values[int(0.98 * (len(values) - 1))] * 1.05
