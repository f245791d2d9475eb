"""Which blocks of queries and keys meet on which device, and when: known beforehand.

Keys go around a ring of devices, one place at each step. Without a window the first
queries of a row see few keys and the last see all, so a device has one piece of length
from the front and its mirror from the back (after Brandon et al. 2023,
arXiv:2311.09431, who deal single tokens): then all have the same to do at every step.
With a window pieces as they come need fewer steps.
"""

import math
from typing import NamedTuple

import numpy as np


class Course(NamedTuple):
    """What each device does.

    Attributes:
        pieces: which pieces of the row a device has, `devices` x 1 or x 2.
        length: tokens of a piece.
        block: tokens of a block; the last of a piece may have fewer.
        steps: for each step, `devices` x pairs x 3: a block of the device's queries, a
            block of the keys that it has at that step, and 1, or 0 for nothing to do.
    """

    pieces: np.ndarray
    length: int
    block: int
    steps: tuple[np.ndarray, ...]

    @property
    def mirrored(self) -> bool:
        """Whether a device has a piece of the front and its mirror."""
        return self.pieces.shape[1] == 2

    @property
    def work(self) -> int:
        """Products of two tokens that a device waits for, its own and others'."""
        return sum(step.shape[1] for step in self.steps) * self.block**2


def plotted(length: int, devices: int, block: int, window: int | None) -> Course:
    """The course of least work for a row of `length` tokens at hand."""
    at = np.arange(devices)
    courses = [laid(at[:, None], length // devices, block, window)]
    if devices > 1:
        if length % (2 * devices):
            raise ValueError(
                f"the kernel Ring cannot share {length} tokens among {devices} devices:"
                f" the length must be a multiple of {2 * devices}, or Mesh.context be"
                " smaller."
            )
        mirrored = np.stack([at, 2 * devices - 1 - at], axis=1)
        courses.append(laid(mirrored, length // (2 * devices), block, window))
    return min(courses, key=lambda course: course.work)


def everything(queries: int, keys: int, block: int) -> np.ndarray:
    """All pairs of blocks of so many tokens, 1 x pairs x 3."""
    counts = [math.ceil(tokens / block) for tokens in (queries, keys)]
    return _listed([np.ones(counts, bool)])


def laid(pieces: np.ndarray, length: int, block: int, window: int | None) -> Course:
    """The course of devices that have these pieces, of `length` tokens each."""
    block = min(block, length)
    begins = np.arange(0, length, block)
    begin = (pieces[:, :, None] * length + begins).reshape(len(pieces), -1)
    last = pieces[:, :, None] * length + np.minimum(begins + block, length) - 1
    last = last.reshape(begin.shape)
    steps = []
    for step in range(len(pieces)):
        key_begin, key_last = (np.roll(x, step, axis=0)[:, None] for x in (begin, last))
        seen = key_begin <= last[:, :, None]
        if window is not None:
            seen &= begin[:, :, None] - key_last < window
        steps.append(_listed(list(seen)))
    while not steps[-1].size:
        steps.pop()
    return Course(pieces, length, block, tuple(steps))


def _listed(seen: list[np.ndarray]) -> np.ndarray:
    """The pairs that each device sees, with zeros to make them equally many."""
    found = [np.argwhere(each) for each in seen]
    pairs = np.zeros((len(seen), max(map(len, found)), 3), np.int32)
    for device, each in enumerate(found):
        pairs[device, : len(each), :2] = each
        pairs[device, : len(each), 2] = 1
    return pairs
