"""A forecast as a bar chart of memory and time."""

from pathlib import Path

from lmx.plan.forecast import Forecast
from lmx.plan.topology import GIB


def plot_forecast(forecast: Forecast, target: Path) -> None:
    """Writes a PNG with a bar for each part of a device's memory and of a step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2)
    parts, time = forecast.memory.parts, forecast.seconds
    left.barh(list(parts), [part / GIB for part in parts.values()], color="tab:blue")
    has = forecast.case.machine.chip.memory / GIB
    left.axvline(has, color="tab:red", linestyle="--", label=f"{has:.1f} GiB a device")
    fits = "fits" if forecast.fits else "does not fit"
    title = f"{forecast.memory.total / GIB:.1f} GiB: {fits}"
    left.set(xlabel="GiB a device", title=title)
    names = ["compute", "memory", "network, overlapped", "network, exposed"]
    right.barh(names, list(time), color="tab:orange")
    label = f"{time.step:.3g} s a step"
    right.axvline(time.step, color="gray", linestyle=":", label=label)
    title = f"bound by {time.bound}, MFU {forecast.mfu:.1%}"
    right.set(xlabel="seconds of a step", title=title)
    for axes in (left, right):
        axes.legend()
        axes.invert_yaxis()
        axes.grid(alpha=0.3, axis="x")
    machine = forecast.case.machine.name
    figure.suptitle(f"{machine}: {forecast.settings}\n{forecast.method}")
    figure.savefig(target, format="png")
