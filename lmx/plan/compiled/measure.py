"""What a compiled program takes, in the words of its compiler."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lmx.plan.compiled.hlo import COLLECTIVES, Op, Program, members

PRODUCTS = ("convolution", "dot")  # on a TPU, products of matrices are convolutions
KERNEL = 'custom_call_target="tpu_custom_call"'  # one of Pallas
# What goes to other slices is handed to the host, as a part of this collective.
BEYOND = re.compile(r'megascale_runtime".*transfer_rendezvous="([a-z-]+)')


class Told(NamedTuple):
    """Collectives of one kind among the same devices, in one step.

    Attributes:
        members: places in the program of the devices of one group.
        bytes: of what is gathered, summed or exchanged, of one device.
        hidden: whether other work goes on meanwhile.
    """

    kind: str
    members: tuple[int, ...]
    bytes: float
    times: int
    hidden: bool


class Measured(NamedTuple):
    """One step on one device.

    Attributes:
        products: cycles of operations that multiply matrices.
        passes: cycles of all others.
        kernels: how often each hand-written kernel runs, whose cycles are not known.
    """

    products: int
    passes: int
    kernels: dict[str, int]
    told: list[Told]


def measured(program: Program, slices: Sequence[int] = ()) -> Measured:
    """Adds up what is executed.

    `slices` are the places of a device of each slice that slow links join.
    """
    products = passes = 0
    kernels: Counter[str] = Counter()
    told: defaultdict[tuple[str, tuple[int, ...], bool], float] = defaultdict(float)
    times_of: Counter[tuple[str, tuple[int, ...], bool]] = Counter()
    for op, times in program.executed():
        inside = program.inside(op)
        if any(part.kind in PRODUCTS for part in (op, *inside)):
            products += times * op.cycles
        else:
            passes += times * op.cycles
        if KERNEL in op.rest:
            kernels[re.sub(r"[.\d]+$", "", op.name)] += times
    seen: set[tuple[str, int]] = set()
    for op, times, hidden in collectives(program):
        if hidden and (op.channel, times) in seen:
            continue  # the parts of one that is spread over other operations
        seen.add((op.channel, times))
        key = (*_who(op, slices), hidden)
        told[key] += times * _bytes(op)
        times_of[key] += times
    return Measured(
        products,
        passes,
        dict(kernels),
        [
            Told(kind, group, size, times_of[kind, group, hidden], hidden)
            for (kind, group, hidden), size in told.items()
        ],
    )


def collectives(program: Program) -> Iterator[tuple[Op, int, bool]]:
    """Each collective, how often it runs, and whether it is hidden.

    What goes to other slices is taken to be waited for.
    """
    for op, times in program.executed():
        if op.kind in COLLECTIVES or _beyond(op):
            yield op, times, False
        elif op.kind.removesuffix("-start") in COLLECTIVES:
            yield op, times, True
        for part in program.inside(op):
            if part.kind in COLLECTIVES:
                yield part, times, True


def _who(op: Op, slices: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """Of which kind it is, and the places of the devices of one group."""
    if kind := _beyond(op):
        return kind, tuple(slices)
    return op.kind.removesuffix("-start"), tuple(members(op))


def _beyond(op: Op) -> str | None:
    """The kind of collective of which this operation is the way to other slices."""
    found = BEYOND.search(op.rest) if op.kind == "send" else None
    return found and found[1]


def _bytes(op: Op) -> float:
    """Of its results: one that only starts has its operands beside them."""
    if op.kind == "send":
        return op.bytes - 4.0  # a number stands beside the array
    if op.kind == "collective-permute-start":
        return op.bytes / 2
    if op.kind == "all-gather-start":
        count = len(members(op))
        return op.bytes * count / (count + 1)
    return float(op.bytes)
