"""Static schedule of ring attention: which blocks meet on which device at each step.

Keys move one device per step. Without a window, the last queries of a row see the most
keys: in the zigzag layout each device has a chunk and its mirror image (after Brandon
et al. 2023, arXiv:2311.09431), so all have equal work. With a window, contiguous chunks
need fewer steps.
"""

import math
from typing import NamedTuple

import numpy as np

from lmx.config.registry import check_argument


class RingSchedule(NamedTuple):
    """The work of each device.

    Attributes:
        chunks: chunks of the row by device; of two, the even one is first.
        chunk_length, block: in tokens; the last block of a chunk may have fewer.
        steps: for each step, `devices` x pairs x 3: a block of the device's queries, a
            block of the keys that it holds at that step, and 1, or 0 for padding.
    """

    chunks: np.ndarray
    chunk_length: int
    block: int
    steps: tuple[np.ndarray, ...]

    @property
    def zigzag(self) -> bool:
        """Whether each device has a chunk of the front and its mirror image."""
        return self.chunks.shape[1] == 2

    @property
    def cost(self) -> int:
        """Pairs of tokens on the critical path."""
        return sum(step.shape[1] for step in self.steps) * self.block**2


def choose_schedule(
    length: int, devices: int, block: int, window: int | None
) -> RingSchedule:
    """The cheapest schedule for a row of `length` tokens without a cache."""
    rank = np.arange(devices)
    contiguous = build_schedule(rank[:, None], length // devices, block, window)
    if devices == 1:
        return contiguous
    check_argument(
        length % (2 * devices) == 0,
        f"RingAttention cannot split {length} tokens over {devices} devices: the"
        f" length must be a multiple of {2 * devices}, or Mesh.context smaller.",
    )
    ends = np.stack([rank, 2 * devices - 1 - rank], axis=1)
    even_first = np.where(rank[:, None] % 2, ends[:, ::-1], ends)
    zigzag = build_schedule(even_first, length // (2 * devices), block, window)
    return min(contiguous, zigzag, key=lambda schedule: schedule.cost)


def list_all_pairs(queries: int, keys: int, block: int) -> np.ndarray:
    """All pairs of blocks of this many queries and keys, 1 x pairs x 3."""
    counts = [math.ceil(tokens / block) for tokens in (queries, keys)]
    return _pad_pairs(np.ones((1, *counts), bool))


def build_schedule(
    chunks: np.ndarray, chunk_length: int, block: int, window: int | None
) -> RingSchedule:
    """The schedule of devices that have these chunks."""
    block = min(block, chunk_length)
    starts = np.arange(0, chunk_length, block)
    ends = np.minimum(starts + block, chunk_length) - 1
    first, last = (
        (chunks[:, :, None] * chunk_length + x).reshape(len(chunks), -1)
        for x in (starts, ends)
    )
    steps = []
    for step in range(len(chunks)):
        key_first, key_last = (np.roll(x, step, axis=0)[:, None] for x in (first, last))
        visible = key_first <= last[:, :, None]
        if window is not None:
            visible &= first[:, :, None] - key_last < window
        steps.append(_pad_pairs(visible))
    while not steps[-1].size:
        steps.pop()
    return RingSchedule(chunks, chunk_length, block, tuple(steps))


def _pad_pairs(visible: np.ndarray) -> np.ndarray:
    """The visible pairs of each device, padded with zeros to the same number."""
    counts = visible.sum(axis=(1, 2))
    pairs = np.zeros((len(visible), counts.max(), 3), np.int32)
    for device, count in enumerate(counts):
        pairs[device, :count, :2] = np.argwhere(visible[device])
        pairs[device, :count, 2] = 1
    return pairs
