"""Reads a compiled program as HLO text: its cycles, kernels and collectives."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Other names end in the number of bits.
BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16}
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
MATMULS = ("convolution", "dot")  # on a TPU, matmuls are convolutions
PALLAS_KERNEL = 'custom_call_target="tpu_custom_call"'
# The host sends data to other slices, for this collective.
CROSS_SLICE = r'megascale_runtime".*transfer_rendezvous="([a-z-]+)'

_COMPUTATION = re.compile(
    r"^(ENTRY )?%([\w.-]+) \([^\n]*\n(.*?)\n\}$", re.MULTILINE | re.DOTALL
)
# A shape can have spaces, but no word in lower case before a parenthesis.
_OP = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)", re.DOTALL)


class HLOOp(NamedTuple):
    """One operation; `rest` is the text after its opening parenthesis."""

    name: str
    shape: str
    kind: str
    rest: str

    @property
    def cycles(self) -> int:
        """The compiler's estimate; 0 if there is none."""
        return int(self.search(r'"estimated_cycles":"(\d+)"') or 0)

    @property
    def bytes(self) -> int:
        """Bytes of all results, without the scratch space of an asynchronous one."""
        total = 0
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", self.shape):
            digits = re.search(r"\d+", kind)
            bits = BITS.get(kind) or (int(digits[0]) if digits else 0)
            total += math.prod(_parse_ints(dims)) * bits // 8
        return total

    @property
    def cross_slice(self) -> str:
        """The kind of collective between slices for which it sends data, if any."""
        return self.search(CROSS_SLICE) if self.kind == "send" else ""

    def find_computation(self, key: str) -> str:
        """The name of its `body`, `calls` or similar computation, or an empty text."""
        return self.search(rf"\b{key}=%([\w.-]+)")

    def search(self, pattern: str) -> str:
        """The first group of a match in `rest`, or an empty text."""
        found = re.search(pattern, self.rest)
        return found[1] if found else ""


@dataclass(frozen=True)
class HLOProgram:
    """Computations by name, and the name of the entry."""

    computations: dict[str, list[HLOOp]]
    entry: str

    def iter_executed(
        self, name: str = "", times: int = 1
    ) -> Iterator[tuple[HLOOp, int]]:
        """Each operation of the entry and of its loops, and how often it runs.

        A fusion is one operation. Of a conditional, the slowest branch runs.
        """
        for op in self.computations[name or self.entry]:
            if op.kind == "while":
                trips = times * self.count_trips(op)
                yield from self.iter_executed(op.find_computation("body"), trips)
            elif op.kind == "conditional":
                listed = op.search(r"branch_computations=\{([^}]*)\}")
                names = re.findall(r"%([\w.-]+)", listed)
                names += re.findall(r"\b(?:true|false)_computation=%([\w.-]+)", op.rest)
                branches = [list(self.iter_executed(name, times)) for name in names]
                yield from max(
                    branches, key=lambda ops: sum(o.cycles * n for o, n in ops)
                )
            else:
                yield op, times

    def count_trips(self, loop: HLOOp) -> int:
        """How often a loop runs: the bound in its condition."""
        ops = self.computations[loop.find_computation("condition")]
        numbers = {
            op.name: op.search(r"^(\d+)\)") for op in ops if op.kind == "constant"
        }
        for op in ops:
            if op.kind == "compare" and "direction=LT" in op.rest:
                _, *bounds = re.findall(r"%([\w.-]+)", op.rest.split(")")[0])
                for name in bounds:
                    if numbers.get(name):
                        return int(numbers[name])
        raise ValueError(f"the HLO has no trip count for the loop {loop.name}.")

    def list_fused(self, op: HLOOp) -> list[HLOOp]:
        """The operations that one operation fuses or wraps."""
        return self.computations.get(op.find_computation("calls"), [])


def parse_hlo(text: str) -> HLOProgram:
    """Parses the text of `jax.stages.Compiled.as_text`."""
    computations, entry = {}, ""
    for is_entry, name, body in _COMPUTATION.findall(text):
        operations = re.split(r"\n(?=  (?:ROOT )?%)", body)  # attributes have breaks
        found = map(_OP.match, operations)
        computations[name] = [HLOOp(*match.groups()) for match in found if match]
        entry = name if is_entry else entry
    return HLOProgram(computations, entry)


def parse_group(op: HLOOp) -> list[int]:
    """The devices of a collective's first group, by position in the program."""
    pairs = re.findall(r"[{,]\{(\d+),(\d+)\}", op.rest.split("target_pairs=")[-1])
    if "source_target_pairs=" in op.rest:
        distinct = (pair for pair in pairs if pair[0] != pair[1])
        return [int(device) for device in next(distinct, pairs[0])]
    text = op.rest.split("replica_groups=", 1)[-1]
    if found := re.match(r"\{\{([\d,]+)\}", text):
        return [*_parse_ints(found[1])]
    if found := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        groups, dims, order = (_parse_ints(part) for part in found.groups())
        devices = np.arange(math.prod(dims)).reshape(dims)
        return devices.transpose(order or None).reshape(groups)[0].tolist()
    if found := re.match(r"mesh\[([^\]]*)\](.*?) \{([^}]*)\}", text):
        return _parse_mesh_group(*found.groups())
    raise ValueError(f"the groups of {op.name} have an unknown form: {text[:80]}")


def _parse_mesh_group(sizes: str, order: str, axes: str) -> list[int]:
    """The first group of a mesh as in `['x'=4,'y'=8], device_ids=([4,8]) {'y':(2)4}`.

    `(2)4` are the middle 4 of an axis that is split into 2, 4 and the rest.
    """
    mesh = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", sizes)}
    devices = np.arange(math.prod(mesh.values()))
    if found := re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order):
        dims, permutation = (_parse_ints(part) for part in found.groups())
        devices = devices.reshape(dims).transpose(permutation or None)
    grouped = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)
    shape, index = [], []
    for name, size in mesh.items():
        parts = [
            (int(a or 1), int(b or size)) for axis, a, b in grouped if axis == name
        ]
        before = 1
        for start, count in sorted(parts):
            shape += [start // before, count]
            index += [0, slice(None)]
            before = start * count
        shape.append(size // before)
        index.append(0)
    return devices.reshape(shape)[tuple(index)].reshape(-1).tolist()


def _parse_ints(text: str | None) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(",")) if text else ()


class CollectiveUse(NamedTuple):
    """Collectives of one kind among the same devices, in one step.

    Attributes:
        devices: positions, in the program, of the devices of one group.
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
        matmul_cycles: cycles of operations with matmuls.
        other_cycles: cycles of all others.
        kernels: how often each Pallas kernel runs, whose cycles are unknown.
    """

    matmul_cycles: int
    other_cycles: int
    kernels: dict[str, int]
    collectives: list[CollectiveUse]


class CompileResult(NamedTuple):
    """The result of a compilation.

    Attributes:
        seconds: time of the compilation.
        peak_memory: bytes that the compiling process used.
        memory: bytes on a device, by purpose.
        refusal: the compiler's message if the program does not fit.
    """

    compiler: str
    seconds: float
    peak_memory: int
    memory: dict[str, float]
    profile: StepProfile | None = None
    refusal: str = ""


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
    uses: dict[tuple[str, tuple[int, ...], bool], CollectiveUse] = {}
    seen: set[tuple[str, int]] = set()
    for op, runs, overlapped in _iter_collectives(program):
        part = (op.search(r"channel_id=(\d+)") or op.name, runs)
        if overlapped and part in seen:
            continue  # part of a collective that is spread over operations
        seen.add(part)
        kind = op.cross_slice or op.kind.removesuffix("-start")
        devices = tuple(slices) if op.cross_slice else tuple(parse_group(op))
        key = kind, devices, overlapped
        use = uses.get(key, CollectiveUse(kind, devices, 0.0, 0, overlapped))
        size = use.bytes + runs * _count_payload(op)
        uses[key] = use._replace(bytes=size, runs=use.runs + runs)
    return StepProfile(cycles[True], cycles[False], dict(kernels), [*uses.values()])


def _iter_collectives(program: HLOProgram) -> Iterator[tuple[HLOOp, int, bool]]:
    """Each collective, how often it runs, and whether it is overlapped.

    Communication between slices is assumed to be exposed.
    """
    for op, runs in program.iter_executed():
        if op.kind in COLLECTIVES or op.cross_slice:
            yield op, runs, False
        elif op.kind.removesuffix("-start") in COLLECTIVES:
            yield op, runs, True
        for part in program.list_fused(op):
            if part.kind in COLLECTIVES:
                yield part, runs, True


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
