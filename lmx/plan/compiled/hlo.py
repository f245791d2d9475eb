"""The text of a compiled program: what is executed, how often, and who tells whom."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16}  # other names end in their number
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
# The shape may hold spaces, but no word of small letters before a parenthesis.
_OP = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)", re.DOTALL)


class HLOOp(NamedTuple):
    """One operation; `rest` is the text behind its opening parenthesis."""

    name: str
    shape: str
    kind: str
    rest: str

    @property
    def cycles(self) -> int:
        """What the compiler thinks that it takes; 0 where it does not say."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else 0

    @property
    def source(self) -> str:
        """Which operation of the traced program it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def bytes(self) -> int:
        """Of all its results, without the scratch of an asynchronous one."""
        return sum(
            _array_bytes(*array)
            for array in re.findall(r"(\w+)\[([\d,]*)\]", self.shape)
        )

    @property
    def channel(self) -> str:
        """What the parts of one collective share."""
        found = re.search(r"channel_id=(\d+)", self.rest)
        return found[1] if found else self.name

    def find_computation(self, key: str) -> str | None:
        """The computation that it says to be its `body`, `calls` or the like."""
        found = re.search(rf"\b{key}=%([\w.-]+)", self.rest)
        return found and found[1]


@dataclass(frozen=True)
class HLOProgram:
    """Computations by name, one of them the entry."""

    computations: dict[str, list[HLOOp]]
    entry: str

    def iter_executed(
        self, name: str = "", times: int = 1
    ) -> Iterator[tuple[HLOOp, int]]:
        """Each operation of the entry and of loops within it, and how often it runs.

        Of what is fused into one, the one only.
        """
        for op in self.computations[name or self.entry]:
            if op.kind == "while":
                body = op.find_computation("body") or ""
                yield from self.iter_executed(body, times * self.count_trips(op))
            elif op.kind == "conditional":
                yield from self._iter_branch(op, times)
            else:
                yield op, times

    def count_trips(self, loop: HLOOp) -> int:
        """How often a loop runs: what its condition compares its counter with."""
        ops = self.computations[loop.find_computation("condition") or ""]
        numbers = {
            op.name: int(op.rest.split(")")[0])
            for op in ops
            if op.kind == "constant" and re.fullmatch(r"\d+", op.rest.split(")")[0])
        }
        for op in ops:
            if op.kind == "compare" and "direction=LT" in op.rest:
                _, *bounds = re.findall(r"%([\w.-]+)", op.rest.split(")")[0])
                for bound in bounds:
                    if bound in numbers:
                        return numbers[bound]
        raise ValueError(f"the text does not say how often the loop {loop.name} runs.")

    def list_fused(self, op: HLOOp) -> list[HLOOp]:
        """What is fused into one operation, or wrapped by it."""
        return self.computations.get(op.find_computation("calls") or "", [])

    def _iter_branch(self, op: HLOOp, times: int) -> Iterator[tuple[HLOOp, int]]:
        """The branch that takes longest."""
        named = re.search(r"branch_computations=\{([^}]*)\}", op.rest)
        names = re.findall(r"%([\w.-]+)", named[1]) if named else []
        names += [
            n
            for key in ("true", "false")
            if (n := op.find_computation(f"{key}_computation"))
        ]
        branches = [list(self.iter_executed(name, times)) for name in names]
        yield from max(branches, key=lambda ops: sum(o.cycles * n for o, n in ops))


def parse_hlo(text: str) -> HLOProgram:
    """The program of what `jax.stages.Compiled.as_text` returns."""
    computations: dict[str, list[HLOOp]] = {}
    entry, here, lines = "", None, []

    def close() -> None:
        found = _OP.match("\n".join(lines)) if lines else None
        if found and here is not None:
            here.append(HLOOp(*found.groups()))
        lines.clear()

    for line in text.splitlines():
        begins = _HEADER.match(line)
        if begins or line == "}":
            close()
            here = computations.setdefault(begins[2], []) if begins else None
            entry = begins[2] if begins and begins[1] else entry
        elif line.startswith(("  %", "  ROOT %")):
            close()
            lines.append(line)
        elif lines:  # an attribute may hold line breaks
            lines.append(line)
    return HLOProgram(computations, entry)


def parse_group(op: HLOOp) -> list[int]:
    """The devices, by their place in the program, of a collective's first group."""
    pairs = re.findall(r"[{,]\{(\d+),(\d+)\}", op.rest.split("target_pairs=")[-1])
    if "source_target_pairs=" in op.rest:
        apart = (pair for pair in pairs if pair[0] != pair[1])
        return [int(place) for place in next(apart, pairs[0])]
    text = op.rest.split("replica_groups=", 1)[-1]
    if found := re.match(r"\{\{([\d,]+)\}", text):
        return [int(each) for each in found[1].split(",")]
    if found := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        groups, dims, order = (_parse_ints(part) for part in found.groups())
        places = np.arange(math.prod(dims)).reshape(dims)
        return places.transpose(order or None).reshape(groups)[0].tolist()
    if found := re.match(r"mesh\[([^\]]*)\](.*?) \{([^}]*)\}", text):
        return _parse_mesh_group(*found.groups())
    raise ValueError(f"the groups of {op.name} are told in an unknown way: {text[:80]}")


def _parse_mesh_group(sizes: str, order: str, axes: str) -> list[int]:
    """The first group of a mesh as in `['x'=4,'y'=8], device_ids=([4,8]) {'y':(2)4}`.

    `(2)4` are the middle 4 of an axis that is seen as 2 times 4 times the rest.
    """
    mesh = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", sizes)}
    places = np.arange(math.prod(mesh.values()))
    if found := re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order):
        dims, turned = (_parse_ints(part) for part in found.groups())
        places = places.reshape(dims).transpose(turned or None)
    told = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)
    parts, taken = [], []
    for name, size in mesh.items():
        mine = [(int(a or 1), int(b or size)) for axis, a, b in told if axis == name]
        before = 1
        for at, count in sorted(mine):
            parts += [at // before, count]
            taken += [False, True]
            before = at * count
        parts.append(size // before)
        taken.append(False)
    where = tuple(slice(None) if take else 0 for take in taken)
    return places.reshape(parts)[where].reshape(-1).tolist()


def _parse_ints(text: str | None) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(",")) if text else ()


def _array_bytes(kind: str, dims: str) -> int:
    """Bytes of an array."""
    found = re.search(r"\d+", kind)
    bits = BITS.get(kind) or (int(found[0]) if found else 0)
    return math.prod(_parse_ints(dims)) * bits // 8
