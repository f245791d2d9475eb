"""A forecast as a bar chart of memory and time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmx.plan.forecast import Forecast
from lmx.plan.topology import GIB


def plot_forecast(forecast: Forecast, target: Path) -> None:
    """Writes a PNG with a bar for each part of a device's memory and of a step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2)
    memory, time = forecast.memory, forecast.seconds
    parts = {name: part / GIB for name, part in memory.parts.items()}
    verdict = "fits" if forecast.fits else "does not fit"
    left.set(xlabel="GiB a device", title=f"{memory.total / GIB:.1f} GiB: {verdict}")
    _draw_bars(left, parts, forecast.case.machine.chip.memory / GIB, "GiB a device")
    names = ("compute", "memory", "network, overlapped", "network, exposed")
    title = f"bound by {time.bound}, MFU {forecast.mfu:.1%}"
    right.set(xlabel="seconds of a step", title=title)
    _draw_bars(right, dict(zip(names, time, strict=True)), time.step, "s a step")
    machine = forecast.case.machine.name
    figure.suptitle(f"{machine}: {forecast.settings}\n{forecast.method}")
    figure.savefig(target, format="png")


def _draw_bars(axes: Any, parts: Mapping[str, float], limit: float, unit: str) -> None:
    axes.barh(list(parts), list(parts.values()))
    axes.axvline(limit, color="tab:red", linestyle="--", label=f"{limit:.3g} {unit}")
    axes.legend()
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
