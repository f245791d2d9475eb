"""Time, kernels and collectives of a compiled program by its compiler."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from lmx.plan.compiled.hlo import COLLECTIVES, HLOOp, HLOProgram, parse_group

MATMULS = ("convolution", "dot")  # on a TPU, matmuls are convolutions
PALLAS_KERNEL = 'custom_call_target="tpu_custom_call"'
# The host sends data to other slices, for this collective.
CROSS_SLICE = re.compile(r'megascale_runtime".*transfer_rendezvous="([a-z-]+)')


class CollectiveUse(NamedTuple):
    """Collectives of one kind among the same devices, in one step.

    Attributes:
        devices: the positions in the program of the devices of one group.
        bytes: gathered, summed or exchanged by one device.
        overlapped: whether other work runs at the same time.
    """

    kind: str
    devices: tuple[int, ...]
    bytes: float
    runs: int
    overlapped: bool


class StepProfile(NamedTuple):
    """One step on one device.

    Attributes:
        matmul_cycles: of operations with matmuls.
        other_cycles: of all others.
        kernels: how often each Pallas kernel runs, whose cycles are unknown.
    """

    matmul_cycles: int
    other_cycles: int
    kernels: dict[str, int]
    collectives: list[CollectiveUse]


@dataclass(frozen=True, kw_only=True)
class CompileResult:
    """The result of a compilation.

    Attributes:
        seconds: of compilation.
        peak_memory: bytes that the compiling process used.
        refusal: the compiler's message if the program does not fit.
        memory: bytes on a device, by purpose.
    """

    compiler: str
    seconds: float
    peak_memory: int
    refusal: str | None = None
    memory: dict[str, int] = field(default_factory=dict)
    profile: StepProfile | None = None

    def to_json(self) -> str:
        """For the process that asked for the compilation."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "CompileResult":
        """The inverse of `to_json`."""
        fields = json.loads(text)
        if fields["profile"]:
            profile = StepProfile(*fields["profile"])
            collectives: list[Any] = profile.collectives
            uses = [CollectiveUse(k, tuple(d), *rest) for k, d, *rest in collectives]
            fields["profile"] = profile._replace(collectives=uses)
        return cls(**fields)


def measure(program: HLOProgram, slices: Sequence[int] = ()) -> StepProfile:
    """Adds up what the program executes.

    `slices` has the position of one device of each slice.
    """
    cycles: Counter[bool] = Counter()
    kernels: Counter[str] = Counter()
    for op, runs in program.iter_executed():
        kinds = {part.kind for part in (op, *program.list_fused(op))}
        cycles[not kinds.isdisjoint(MATMULS)] += runs * op.cycles
        if PALLAS_KERNEL in op.rest:
            kernels[re.sub(r"[.\d]+$", "", op.name)] += runs
    sizes: dict[tuple[str, tuple[int, ...], bool], tuple[float, int]] = {}
    seen: set[tuple[str, int]] = set()
    for op, runs, overlapped in iter_collectives(program):
        if overlapped and (op.channel, runs) in seen:
            continue  # part of a collective that is spread over operations
        seen.add((op.channel, runs))
        cross = _find_cross_slice(op)
        kind = cross or op.kind.removesuffix("-start")
        devices = tuple(slices) if cross else tuple(parse_group(op))
        size, count = sizes.get((kind, devices, overlapped), (0.0, 0))
        total = size + runs * _count_payload(op)
        sizes[kind, devices, overlapped] = total, count + runs
    uses = [CollectiveUse(*key[:2], *use, key[2]) for key, use in sizes.items()]
    return StepProfile(cycles[True], cycles[False], dict(kernels), uses)


def iter_collectives(program: HLOProgram) -> Iterator[tuple[HLOOp, int, bool]]:
    """Each collective, how often it runs, and whether it is overlapped.

    Communication between slices is assumed to be exposed.
    """
    for op, runs in program.iter_executed():
        if op.kind in COLLECTIVES or _find_cross_slice(op):
            yield op, runs, False
        elif op.kind.removesuffix("-start") in COLLECTIVES:
            yield op, runs, True
        for part in program.list_fused(op):
            if part.kind in COLLECTIVES:
                yield part, runs, True


def _find_cross_slice(op: HLOOp) -> str | None:
    """The kind of collective between slices for which an operation sends data."""
    found = CROSS_SLICE.search(op.rest) if op.kind == "send" else None
    return found and found[1]


def _count_payload(op: HLOOp) -> float:
    """Bytes of the results; a started collective lists its operands too."""
    if op.kind == "send":
        return op.bytes - 4.0  # a number accompanies the array
    if op.kind == "collective-permute-start":
        return op.bytes / 2
    if op.kind == "all-gather-start":
        count = len(parse_group(op))
        return op.bytes * count / (count + 1)
    return float(op.bytes)
