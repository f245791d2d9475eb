"""A forecast as text."""

from collections.abc import Sequence

from lmx.plan.forecast import Forecast
from lmx.plan.search import format_overrides
from lmx.plan.topology import GIB

Rows = list[tuple[str, ...]]
ANALYTIC = """\
Nothing was compiled or run. Assumptions: a fused attention kernel that saves no scores
and skips masked tokens, at 50% of the peak; other matmuls at 81% of it; gathers of
weights overlap with other work, on GPUs also sums of gradients, and nothing over
`tensor` and `expert`; one document a row. Left out: ring attention over `context`,
bubbles of `stage`, dropout, host work and stragglers."""
COMPILED = """\
Memory, cycles and collectives are those of the compiler for this step; nothing was run.
Assumptions: attention kernels, whose cycles it does not estimate, reach 50% of the
peak; collectives reach the bandwidth of the links, and are exposed unless the compiler
spreads them over other work. Left out: host work and stragglers."""


def format_report(forecast: Forecast, better: dict[str, Forecast]) -> str:
    """The whole report, the verdict last."""
    case, machine = forecast.case, forecast.case.machine
    idle = machine.devices - case.devices
    parts = [
        f"{machine.name}: {machine.devices:,} devices in {machine.groups} group(s)"
        f"{f', {idle} of them idle' if idle else ''}; {forecast.settings}",
        _format_tensors(forecast),
        _format_memory(forecast),
        _format_collectives(forecast),
        _format_speed(forecast),
        f"{forecast.method}.\n{COMPILED if forecast.compiled else ANALYTIC}",
        *(f"Kernel {name} is counted as 0 s." for name in forecast.untimed_kernels),
        format_verdict(forecast, better),
    ]
    return "\n\n".join(parts)


def format_ranking(forecast: Forecast, best: Sequence[Forecast]) -> str:
    """Settings in order, each with its prediction."""
    rows: Rows = [("settings", "GiB", "seconds", "MFU", "bound by", "")]
    rows += [
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
    return _format_table(rows)


def format_verdict(forecast: Forecast, better: dict[str, Forecast]) -> str:
    """Whether it fits, and the settings with which it would."""
    used, has = forecast.memory.total / GIB, forecast.case.machine.chip.memory / GIB
    if forecast.fits:
        return f"fits: {used:.1f} of {has:.1f} GiB a device"
    lines = [f"does not fit: {used:.1f} GiB a device, which has {has:.1f}"]
    for name, each in better.items():
        step = f"{each.memory.total / GIB:.1f} GiB, {each.seconds.step:.3g} s a step"
        lines.append(f"  {name}: {format_overrides(forecast, each)} fits ({step})")
    if not better:
        lines.append("  no settings were found that fit: make the model smaller")
    return "\n".join(lines)


def _format_table(rows: Rows) -> str:
    """Aligned columns, the first to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligns = ["<", *(">" for _ in widths[1:])]
    form = "  ".join(f"{{:{a}{w}}}" for a, w in zip(aligns, widths, strict=True))
    return "\n".join(form.format(*row).rstrip() for row in rows)


def _format_tensors(forecast: Forecast) -> str:
    rows: Rows = [("tensor", "shape", "sharded over", "MiB", "MiB a device")]
    rows += [
        (
            tensor.name,
            " ".join(map(str, tensor.shape)) or "1",
            " ".join(sorted(tensor.mesh_axes)) or "nothing",
            f"{tensor.bytes / 2**20:,.2f}",
            f"{tensor.local_bytes / 2**20:,.2f}",
        )
        for tensor in forecast.tensors
    ]
    return _format_table(rows)


def _format_memory(forecast: Forecast) -> str:
    parts = {**forecast.memory.parts, "total": forecast.memory.total}
    rows = [(name, f"{part / GIB:.3f}") for name, part in parts.items()]
    return _format_table([("a device, in the largest phase", "GiB"), *rows])


def _format_collectives(forecast: Forecast) -> str:
    rows: Rows = [("collective", "over", "of", "GiB sent", "seconds", "")]
    rows += [
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
    return _format_table(rows) if forecast.collectives else "no collectives"


def _format_speed(forecast: Forecast) -> str:
    time, flops = forecast.seconds, forecast.flops
    return _format_table(
        [
            ("FLOPs of weights per token (6N)", f"{flops.weights:.4g}"),
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
        ]
    )
