"""A forecast as text."""

from collections.abc import Sequence

from lmx.plan.case import PlannedTensor
from lmx.plan.forecast import Forecast
from lmx.plan.search import format_overrides
from lmx.plan.topology import GIB

ANALYTIC = """\
Nothing was compiled or run. Attention is taken to be a fused kernel, that keeps no
scores and skips what is not seen, at 50% of the peak; other products to reach 81% of
it; gathers of weights to hide behind other work, and on GPUs sums of gradients, but
none over `tensor` and `expert`; one document a row. Keys that go around `context`,
bubbles of `stage`, dropout, host work and stragglers are left out."""
COMPILED = """\
Memory, cycles and collectives are the compiler's, for this very step; nothing was run.
Attention kernels, whose cycles it does not tell, are taken to reach 50% of the peak,
and collectives what the links can carry; those that it does not spread over other work
are waited for. Host work and stragglers are left out."""


def format_report(said: Forecast, better: dict[str, Forecast]) -> str:
    """All of it, the verdict last."""
    case, machine = said.case, said.case.machine
    idle = machine.devices - case.devices
    head = (
        f"{machine.name}: {machine.devices:,} devices in {machine.groups} group(s)"
        f"{f', {idle} of them idle' if idle else ''}; {said.settings}"
    )
    parts = [
        head,
        _format_tensors(said),
        _format_memory(said),
        _format_collectives(said),
        _format_speed(said),
    ]
    assumed = COMPILED if said.compiled else ANALYTIC
    parts.append(f"{said.method}. {assumed}")
    parts += [f"Counted as no time: kernel {name}." for name in said.untimed_kernels]
    return "\n\n".join([*parts, format_verdict(said, better)])


def format_ranking(said: Forecast, best: Sequence[Forecast]) -> str:
    """Settings in their order, each with what it comes to."""
    rows = [("settings", "GiB", "seconds", "MFU", "bound by", "")]
    rows += [
        (
            format_overrides(said, each) or "as they are",
            f"{each.memory.total / GIB:.1f}",
            f"{each.seconds.step:.4g}",
            f"{each.mfu:.1%}",
            each.seconds.bound,
            each.method if each.fits else f"does not fit; {each.method}",
        )
        for each in best
    ]
    return _format_table(rows)


def format_verdict(said: Forecast, better: dict[str, Forecast]) -> str:
    """Whether it fits, and what would make it."""
    need, has = said.memory.total / GIB, said.case.machine.chip.memory / GIB
    if said.fits:
        return f"fits: {need:.1f} of {has:.1f} GiB a device"
    lines = [f"does not fit: {need:.1f} GiB a device, which has {has:.1f}"]
    for name, each in better.items():
        step = f"{each.memory.total / GIB:.1f} GiB, {each.seconds.step:.3g} s a step"
        lines.append(f"  {name}: {format_overrides(said, each)} fits ({step})")
    if not better:
        lines.append("  nothing that was tried makes it fit: make the model smaller")
    return "\n".join(lines)


def _format_table(rows: list[tuple[str, ...]]) -> str:
    """Columns under one another, the first to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _format_tensors(said: Forecast) -> str:
    rows = [("tensor", "shape", "split", "MiB", "MiB a device")]
    rows += [_format_tensor(tensor) for tensor in said.tensors]
    return _format_table(rows)


def _format_tensor(tensor: PlannedTensor) -> tuple[str, ...]:
    return (
        tensor.name,
        " ".join(map(str, tensor.shape)) or "1",
        " ".join(sorted(tensor.mesh_axes)) or "whole",
        f"{tensor.bytes / 2**20:,.2f}",
        f"{tensor.local_bytes / 2**20:,.2f}",
    )


def _format_memory(said: Forecast) -> str:
    rows = [("a device, at the fullest moment", "GiB")]
    rows += [(name, f"{part / GIB:.3f}") for name, part in said.memory.parts.items()]
    return _format_table([*rows, ("in all", f"{said.memory.total / GIB:.3f}")])


def _format_collectives(said: Forecast) -> str:
    rows = [("collective", "over", "of", "GiB sent", "seconds", "")]
    rows += [
        (
            each.kind,
            each.axis,
            each.payload,
            f"{each.bytes / GIB:.3f}",
            f"{each.seconds:.4g}",
            "hidden" if each.overlapped else "waited for",
        )
        for each in said.collectives
    ]
    return _format_table(rows) if said.collectives else "no collectives"


def _format_speed(said: Forecast) -> str:
    took, flops = said.seconds, said.flops
    rows = [
        ("parameters' FLOPs a token (6N)", f"{flops.weights:.4g}"),
        ("with attention", f"{flops.attention:.4g}"),
        ("with causal attention", f"{flops.causal:.4g}"),
        ("done, with what is computed again", f"{flops.executed:.4g}"),
        ("seconds a step, computing", f"{took.compute:.4g}"),
        ("at the memory", f"{took.memory:.4g}"),
        ("on the network, hidden", f"{took.overlapped:.4g}"),
        ("on the network, waited for", f"{took.exposed:.4g}"),
        (f"in all, bound by {took.bound}", f"{took.step:.4g}"),
        ("tokens a step", f"{said.case.tokens:,}"),
        ("tokens a second", f"{said.tokens_per_second:,.0f}"),
        ("MFU, with attention", f"{said.mfu:.1%}"),
        (f"hours for {said.case.steps:,} steps", f"{said.hours:,.1f}"),
        ("GiB of a checkpoint", f"{said.checkpoint_bytes / GIB:,.2f}"),
        (f"US dollars, {said.price:g} an hour a chip", f"{said.dollars:,.0f}"),
    ]
    return _format_table(rows)
