"""A forecast as text, and as a bar chart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmx.core.console import format_table
from lmx.plan.forecast import Forecast
from lmx.plan.search import FUSED, format_overrides
from lmx.plan.topology import GIB

ANALYTIC = """\
Nothing was compiled or run. Assumptions: attention at 50% of the peak, which skips
masked tokens unless its backend holds all logits; other matmuls at 81% of it; float32
in TF32 on GPUs and as fast as bfloat16 on TPUs; gathers of weights overlap with other
work, on GPUs also sums of gradients, and nothing over `tensor` and `expert`; one
document per row. Left out: ring attention over `context`, bubbles of `stage`,
attention of models that a loss runs, dropout, compilation, evaluation, saves, host
work and stragglers."""
COMPILED = """\
Memory, cycles and collectives are those of the compiler for this step; nothing was run.
Assumptions: attention kernels, whose cycles it does not estimate, reach 50% of the
peak; collectives reach the bandwidth of the links, and are exposed unless the compiler
spreads them over other work. Left out: compilation, evaluation, saves, host work and
stragglers."""


def format_report(
    forecast: Forecast, better: dict[str, Forecast], list_tensors: bool = False
) -> str:
    """The whole report, the verdict first."""
    case, machine = forecast.case, forecast.case.machine
    idle = machine.devices - case.devices
    parts = [
        format_verdict(forecast, better),
        f"{machine.name}: {machine.devices:,} devices in {machine.groups} group(s)"
        f"{f', {idle} of them idle' if idle else ''}; {forecast.settings}",
        *([_format_tensors(forecast)] if list_tensors else ()),
        _format_memory(forecast),
        _format_collectives(forecast),
        _format_speed(forecast),
        f"{forecast.method}.\n{COMPILED if forecast.compile_cost else ANALYTIC}",
        *(f"Kernel {name} is counted as 0 s." for name in forecast.untimed_kernels),
    ]
    return "\n\n".join(parts)


def format_ranking(forecast: Forecast, best: Sequence[Forecast]) -> str:
    """Settings in order, each with its prediction."""
    rows = [
        (
            format_overrides(forecast, each) or "unchanged",
            f"{each.memory.total / GIB:.1f}",
            f"{each.seconds.step:.4g}",
            f"{each.mfu:.1%}",
            each.seconds.bound,
            each.method if each.fits else f"does not fit; {each.method}",
        )
        for each in best
    ]
    return format_table(("settings", "GiB", "seconds", "MFU", "bound by", ""), rows)


def format_verdict(forecast: Forecast, better: dict[str, Forecast]) -> str:
    """Whether it fits, what takes most memory, and the settings with which it would."""
    machine, parts = forecast.case.machine, forecast.memory.parts
    used, has = forecast.memory.total / GIB, machine.chip.memory / GIB
    largest = max(parts, key=lambda name: parts[name])
    most = f"the largest part is {largest} ({parts[largest] / GIB:.1f})"
    if forecast.fits:
        return (
            f"fits {machine.name}: {used:.1f} of {has:.1f} GiB a device {most};"
            f" {forecast.seconds.step:.3g} s a step"
        )
    lines = [
        f"does not fit {machine.name}: {used:.1f} GiB a device, which has {has:.1f},"
        f" {most}"
    ]
    backends = " or ".join(FUSED[machine.chip.platform])
    causes = {
        "attention logits": f"attention holds all pairs of tokens: {backends} does not",
        "logits": "the loss holds all logits: NextToken.chunk=1024 holds fewer",
    }
    lines += [f"  {causes[x]}" for x in causes if parts.get(x, 0.0) > GIB]
    for name, each in better.items():
        step = f"{each.memory.total / GIB:.1f} GiB, {each.seconds.step:.3g} s a step"
        lines.append(f"  {name}: {format_overrides(forecast, each)} fits ({step})")
    if not better:
        lines.append("  no mesh, remat and microbatches fit: make the model smaller")
    return "\n".join(lines)


def _format_tensors(forecast: Forecast) -> str:
    rows = [
        (
            tensor.name,
            " ".join(map(str, tensor.shape)) or "1",
            " ".join(sorted(tensor.mesh_axes)) or "nothing",
            f"{tensor.bytes / 2**20:,.2f}",
            f"{tensor.local_bytes / 2**20:,.2f}",
        )
        for tensor in forecast.tensors
    ]
    header = ("tensor", "shape", "sharded over", "MiB", "MiB a device")
    return format_table(header, rows)


def _format_memory(forecast: Forecast) -> str:
    parts = {**forecast.memory.parts, "total": forecast.memory.total}
    rows = [(name, f"{part / GIB:.3f}") for name, part in parts.items()]
    return format_table(("a device, in the largest phase", "GiB"), rows)


def _format_collectives(forecast: Forecast) -> str:
    rows = [
        (
            each.kind,
            each.axis,
            each.payload,
            f"{each.bytes / GIB:.3f}",
            f"{each.seconds:.4g}",
            "overlapped" if each.overlapped else "exposed",
        )
        for each in forecast.collectives
    ]
    header = ("collective", "over", "of", "GiB sent", "seconds", "")
    return format_table(header, rows) if rows else "no collectives"


def _format_speed(forecast: Forecast) -> str:
    time, flops = forecast.seconds, forecast.flops
    return format_table(
        ("FLOPs of weights per token (6N)", f"{flops.weights:.4g}"),
        [
            ("with attention", f"{flops.attention:.4g}"),
            ("with causal attention", f"{flops.causal:.4g}"),
            ("executed, with recomputation", f"{flops.executed:.4g}"),
            ("seconds of compute per step", f"{time.compute:.4g}"),
            ("of memory traffic", f"{time.memory:.4g}"),
            ("of overlapped communication", f"{time.overlapped:.4g}"),
            ("of exposed communication", f"{time.exposed:.4g}"),
            (f"of the whole step, bound by {time.bound}", f"{time.step:.4g}"),
            ("tokens per step", f"{forecast.case.tokens:,}"),
            ("tokens per second", f"{forecast.tokens_per_second:,.0f}"),
            ("MFU, with attention", f"{forecast.mfu:.1%}"),
            (f"hours for {forecast.case.steps:,} steps", f"{forecast.hours:,.1f}"),
            ("GiB of a checkpoint", f"{forecast.checkpoint_bytes / GIB:,.2f}"),
            (
                f"US dollars, at {forecast.price:g} per chip and hour",
                f"{forecast.dollars:,.0f}",
            ),
        ],
    )


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
