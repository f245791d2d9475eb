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


class RingSchedule(NamedTuple):
    """What each device does.

    Attributes:
        pieces: which pieces of the row a device has, `devices` x 1 or x 2.
        length: tokens of a piece.
        block: tokens of a block; the last of a piece may have fewer.
        steps: for each step, `devices` x pairs x 3: a block of the device's queries, a
            block of the keys that it has at that step, and 1, or 0 for nothing to do.
    """

    chunks: np.ndarray
    chunk_length: int
    block: int
    steps: tuple[np.ndarray, ...]

    @property
    def zigzag(self) -> bool:
        """Whether a device has a piece of the front and its mirror."""
        return self.chunks.shape[1] == 2

    @property
    def cost(self) -> int:
        """Products of two tokens that a device waits for, its own and others'."""
        return sum(step.shape[1] for step in self.steps) * self.block**2


def choose_schedule(
    length: int, devices: int, block: int, window: int | None
) -> RingSchedule:
    """The course of least work for a row of `length` tokens at hand."""
    at = np.arange(devices)
    courses = [build_schedule(at[:, None], length // devices, block, window)]
    if devices > 1:
        if length % (2 * devices):
            raise ValueError(
                f"the kernel Ring cannot share {length} tokens among {devices} devices:"
                f" the length must be a multiple of {2 * devices}, or Mesh.context be"
                " smaller."
            )
        mirrored = np.stack([at, 2 * devices - 1 - at], axis=1)
        courses.append(build_schedule(mirrored, length // (2 * devices), block, window))
    return min(courses, key=lambda course: course.cost)


def list_all_pairs(queries: int, keys: int, block: int) -> np.ndarray:
    """All pairs of blocks of so many tokens, 1 x pairs x 3."""
    counts = [math.ceil(tokens / block) for tokens in (queries, keys)]
    return _pad_pairs([np.ones(counts, bool)])


def build_schedule(
    chunks: np.ndarray, chunk_length: int, block: int, window: int | None
) -> RingSchedule:
    """The course of devices that have these pieces, of `length` tokens each."""
    block = min(block, chunk_length)
    begins = np.arange(0, chunk_length, block)
    begin = (chunks[:, :, None] * chunk_length + begins).reshape(len(chunks), -1)
    last = (
        chunks[:, :, None] * chunk_length + np.minimum(begins + block, chunk_length) - 1
    )
    last = last.reshape(begin.shape)
    steps = []
    for step in range(len(chunks)):
        key_begin, key_last = (np.roll(x, step, axis=0)[:, None] for x in (begin, last))
        seen = key_begin <= last[:, :, None]
        if window is not None:
            seen &= begin[:, :, None] - key_last < window
        steps.append(_pad_pairs(list(seen)))
    while not steps[-1].size:
        steps.pop()
    return RingSchedule(chunks, chunk_length, block, tuple(steps))


def _pad_pairs(seen: list[np.ndarray]) -> np.ndarray:
    """The pairs that each device sees, with zeros to make them equally many."""
    found = [np.argwhere(each) for each in seen]
    pairs = np.zeros((len(seen), max(map(len, found)), 3), np.int32)
    for device, each in enumerate(found):
        pairs[device, : len(each), :2] = each
        pairs[device, : len(each), 2] = 1
    return pairs
