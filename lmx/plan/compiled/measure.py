"""What a compiled program takes, in the words of its compiler."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lmx.plan.compiled.hlo import COLLECTIVES, HLOOp, HLOProgram, parse_group

MATMULS = ("convolution", "dot")  # on a TPU, products of matrices are convolutions
PALLAS_KERNEL = 'custom_call_target="tpu_custom_call"'  # one of Pallas
# What goes to other slices is handed to the host, as a part of this collective.
CROSS_SLICE = re.compile(r'megascale_runtime".*transfer_rendezvous="([a-z-]+)')


class CollectiveUse(NamedTuple):
    """Collectives of one kind among the same devices, in one step.

    Attributes:
        members: places in the program of the devices of one group.
        bytes: of what is gathered, summed or exchanged, of one device.
        hidden: whether other work goes on meanwhile.
    """

    kind: str
    devices: tuple[int, ...]
    bytes: float
    runs: int
    overlapped: bool


class StepProfile(NamedTuple):
    """One step on one device.

    Attributes:
        products: cycles of operations that multiply matrices.
        passes: cycles of all others.
        kernels: how often each hand-written kernel runs, whose cycles are not known.
    """

    matmul_cycles: int
    other_cycles: int
    kernels: dict[str, int]
    collectives: list[CollectiveUse]


def measure(program: HLOProgram, slices: Sequence[int] = ()) -> StepProfile:
    """Adds up what is executed.

    `slices` are the places of a device of each slice that slow links join.
    """
    products = passes = 0
    kernels: Counter[str] = Counter()
    told: defaultdict[tuple[str, tuple[int, ...], bool], float] = defaultdict(float)
    times_of: Counter[tuple[str, tuple[int, ...], bool]] = Counter()
    for op, times in program.iter_executed():
        inside = program.list_fused(op)
        if any(part.kind in MATMULS for part in (op, *inside)):
            products += times * op.cycles
        else:
            passes += times * op.cycles
        if PALLAS_KERNEL in op.rest:
            kernels[re.sub(r"[.\d]+$", "", op.name)] += times
    seen: set[tuple[str, int]] = set()
    for op, times, hidden in iter_collectives(program):
        if hidden and (op.channel, times) in seen:
            continue  # the parts of one that is spread over other operations
        seen.add((op.channel, times))
        key = (*_identify(op, slices), hidden)
        told[key] += times * _payload_bytes(op)
        times_of[key] += times
    return StepProfile(
        products,
        passes,
        dict(kernels),
        [
            CollectiveUse(kind, group, size, times_of[kind, group, hidden], hidden)
            for (kind, group, hidden), size in told.items()
        ],
    )


def iter_collectives(program: HLOProgram) -> Iterator[tuple[HLOOp, int, bool]]:
    """Each collective, how often it runs, and whether it is hidden.

    What goes to other slices is taken to be waited for.
    """
    for op, times in program.iter_executed():
        if op.kind in COLLECTIVES or _cross_slice_kind(op):
            yield op, times, False
        elif op.kind.removesuffix("-start") in COLLECTIVES:
            yield op, times, True
        for part in program.list_fused(op):
            if part.kind in COLLECTIVES:
                yield part, times, True


def _identify(op: HLOOp, slices: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """Of which kind it is, and the places of the devices of one group."""
    if kind := _cross_slice_kind(op):
        return kind, tuple(slices)
    return op.kind.removesuffix("-start"), tuple(parse_group(op))


def _cross_slice_kind(op: HLOOp) -> str | None:
    """The kind of collective of which this operation is the way to other slices."""
    found = CROSS_SLICE.search(op.rest) if op.kind == "send" else None
    return found and found[1]


def _payload_bytes(op: HLOOp) -> float:
    """Of its results: one that only starts has its operands beside them."""
    if op.kind == "send":
        return op.bytes - 4.0  # a number stands beside the array
    if op.kind == "collective-permute-start":
        return op.bytes / 2
    if op.kind == "all-gather-start":
        count = len(parse_group(op))
        return op.bytes * count / (count + 1)
    return float(op.bytes)
