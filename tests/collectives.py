"""Collectives of a compiled program: kind, sizes and groups."""

import math
import re
from typing import NamedTuple

import numpy as np

KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


class Collective(NamedTuple):
    body: str  # the computation it stands in
    kind: str
    sizes: list[int]  # numbers in each array that comes out, on one device
    group: list[int]  # devices that first take part in it

    def crosses(self, slices, devices=8):
        """Whether it joins slices, each of which has neighbouring devices."""
        return len({device * slices // devices for device in self.group}) > 1


def collectives(text):
    """All of them, in the order of the program's text."""
    body, found = "", []
    for line in text.splitlines():
        if begins := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            body = begins[1]
        if match := re.search(rf" = (.*?) ({KINDS})(?:-start)?\(", line):
            shapes = re.findall(r"\w\d+\[([\d,]*)\]", match[1])
            sizes = [math.prod(numbers(shape)) for shape in shapes]
            found.append(Collective(body, match[2], sizes, group(line)))
    return found


def group(line):
    """The first group of a collective: a list, strides, or mesh axes."""
    if pair := re.search(r"source_target_pairs=(\{\{.*?\}\})", line):
        pairs = np.array(numbers(pair[1])).reshape(-1, 2)
        return next((list(p) for p in pairs if p[0] != p[1]), [])
    text = line.split("replica_groups=")[1]
    if listed := re.match(r"\{\{([\d,]+)\}", text):
        return numbers(listed[1])
    if strides := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, dims, order = (numbers(part or "") for part in strides.groups())
        return transposed(dims, order).reshape(shape)[0].tolist()
    mesh = re.match(
        r"mesh\[(.*?)\](?:, device_ids=\(?\[(.*?)\](?:T\((.*?)\))?\)?)? \{(.*?)\}", text
    )
    assert mesh and ":" not in mesh[4], text[:200]
    sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
    dims, order = numbers(mesh[2] or ""), numbers(mesh[3] or "")
    places = transposed(dims or list(sizes.values()), order).reshape(*sizes.values())
    taken = re.findall(r"'(\w+)'", mesh[4])
    return (
        places[tuple(slice(None) if n in taken else 0 for n in sizes)].ravel().tolist()
    )


def transposed(dims, order):
    return np.arange(math.prod(dims)).reshape(dims).transpose(order or range(len(dims)))


def numbers(text):
    return [int(n) for n in re.findall(r"\d+", text)]
