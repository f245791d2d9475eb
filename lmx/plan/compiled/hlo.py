"""Parses HLO text: operations, trip counts of loops, groups of collectives."""

import math
import re
from collections.abc import Iterator
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

_HEADER = re.compile(r"(ENTRY )?%([\w.-]+) \(")
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
        return sum(
            _array_bytes(*array)
            for array in re.findall(r"(\w+)\[([\d,]*)\]", self.shape)
        )

    @property
    def channel(self) -> str:
        """The identifier that the parts of one collective share."""
        return self.search(r"channel_id=(\d+)") or self.name

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

        A fusion is one operation.
        """
        for op in self.computations[name or self.entry]:
            if op.kind == "while":
                trips = times * self.count_trips(op)
                yield from self.iter_executed(op.find_computation("body"), trips)
            elif op.kind == "conditional":
                yield from self._iter_branch(op, times)
            else:
                yield op, times

    def count_trips(self, loop: HLOOp) -> int:
        """How often a loop runs: the bound in its condition."""
        ops = self.computations[loop.find_computation("condition")]
        numbers = {}
        for op in ops:
            operands = op.rest.split(")")[0]
            if op.kind == "constant" and operands.isdigit():
                numbers[op.name] = int(operands)
        for op in ops:
            if op.kind == "compare" and "direction=LT" in op.rest:
                _, *bounds = re.findall(r"%([\w.-]+)", op.rest.split(")")[0])
                if known := [numbers[name] for name in bounds if name in numbers]:
                    return known[0]
        raise ValueError(f"the HLO has no trip count for the loop {loop.name}.")

    def list_fused(self, op: HLOOp) -> list[HLOOp]:
        """The operations that one operation fuses or wraps."""
        return self.computations.get(op.find_computation("calls"), [])

    def _iter_branch(self, op: HLOOp, times: int) -> Iterator[tuple[HLOOp, int]]:
        """The operations of the slowest branch."""
        listed = op.search(r"branch_computations=\{([^}]*)\}")
        names = re.findall(r"%([\w.-]+)", listed)
        names += re.findall(r"\b(?:true|false)_computation=%([\w.-]+)", op.rest)
        branches = [list(self.iter_executed(name, times)) for name in names]
        yield from max(branches, key=lambda ops: sum(o.cycles * n for o, n in ops))


def parse_hlo(text: str) -> HLOProgram:
    """Parses the text of `jax.stages.Compiled.as_text`."""
    computations: dict[str, list[HLOOp]] = {}
    entry, current, lines = "", None, []

    def add_operation() -> None:
        found = _OP.match("\n".join(lines)) if lines else None
        if found and current is not None:
            current.append(HLOOp(*found.groups()))
        lines.clear()

    for line in text.splitlines():
        header = _HEADER.match(line)
        if header or line == "}":
            add_operation()
            current = computations.setdefault(header[2], []) if header else None
            entry = header[2] if header and header[1] else entry
        else:
            if line.startswith(("  %", "  ROOT %")):
                add_operation()
            lines.append(line)  # an attribute can have line breaks
    return HLOProgram(computations, entry)


def parse_group(op: HLOOp) -> list[int]:
    """The positions in the program of the devices of a collective's first group."""
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


def _array_bytes(kind: str, dims: str) -> int:
    """Bytes of an array."""
    found = re.search(r"\d+", kind)
    bits = BITS.get(kind) or (int(found[0]) if found else 0)
    return math.prod(_parse_ints(dims)) * bits // 8
