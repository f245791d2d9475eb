"""A forecast as a picture: where memory and time go."""

from pathlib import Path

from lmx.plan.forecast import Forecast
from lmx.plan.topology import GIB


def plot_forecast(said: Forecast, target: Path) -> None:
    """Writes a PNG with a bar for each part of a device's memory and of a step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2)
    parts = said.memory.parts
    left.barh(list(parts), [part / GIB for part in parts.values()], color="tab:blue")
    has = said.case.machine.chip.memory / GIB
    left.axvline(has, color="tab:red", linestyle="--", label=f"{has:.1f} GiB a device")
    fits = "fits" if said.fits else "does not fit"
    left.set(xlabel="GiB a device", title=f"{said.memory.total / GIB:.1f} GiB: {fits}")
    left.legend()
    took = said.seconds._asdict()
    names = ["compute", "memory", "network, hidden", "network, waited for"]
    right.barh(names, list(took.values()), color="tab:orange")
    label = f"{said.seconds.step:.3g} s a step"
    right.axvline(said.seconds.step, color="gray", linestyle=":", label=label)
    right.set(
        xlabel="seconds of a step",
        title=f"bound by {said.seconds.bound}, MFU {said.mfu:.1%}",
    )
    right.legend()
    for axes in (left, right):
        axes.invert_yaxis()
        axes.grid(alpha=0.3, axis="x")
    figure.suptitle(f"{said.case.machine.name}: {said.settings}\n{said.method}")
    figure.savefig(target, format="png")
