"""Best-fit packing of documents into rows, computed once per length and cached."""

import bisect
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Integer

from lmx.config.registry import ConfigError
from lmx.core.files import get_cache_dir, write_atomic

FORMAT_VERSION = 2  # raise it when the files or their contents change
MAX_HASHED_BYTES = 64 * 2**20  # larger files are not hashed when they are opened


class RowContents(NamedTuple):
    """Contents of a row: `count` segments of one size, after `previous`."""

    previous: "RowContents | None"
    size: int
    count: int


class PackedRows(NamedTuple):
    """Row r consists of the segments [row_starts[r], row_starts[r + 1])."""

    row_starts: Int64[np.ndarray, " _"]
    starts: Int64[np.ndarray, " M"]  # of each segment, in the stream
    lengths: Int64[np.ndarray, " M"]  # tokens, each with the next one as its target


def load_or_pack(
    starts: Int64[np.ndarray, " _"], fingerprint: Mapping[str, str], length: int
) -> PackedRows:
    """Loads packed rows from the cache, or packs the documents with those starts.

    A damaged file is replaced.
    """
    identity = json.dumps([FORMAT_VERSION, dict(fingerprint), length])
    key = hashlib.sha256(identity.encode()).hexdigest()[:32]
    path = get_cache_dir("rows") / f"{key}.bin"
    if path.exists():
        try:
            return _read(path)
        except (OSError, ValueError, IndexError) as error:
            logging.getLogger(__name__).warning("%s: %s: packing again", path, error)
    packed = pack_documents(starts, length)
    data = np.concatenate([[len(packed.row_starts)], *packed])
    write_atomic(path, np.concatenate([_hash(data), data]).tobytes())
    return packed


def _read(path: Path) -> PackedRows:
    """Maps packed rows into memory. A small file must match its hash."""
    array = np.asarray(np.memmap(path, np.int64, mode="r"))
    digest, count, data = array[:4], array[4], array[5:]
    row_starts, starts, lengths = np.split(data, [count, (len(data) + count) // 2])
    is_small = array.nbytes <= MAX_HASHED_BYTES
    if len(starts) != row_starts[-1] or (
        is_small and (_hash(array[4:]) != digest).any()
    ):
        raise ValueError("the file is damaged")
    return PackedRows(row_starts, starts, lengths)


def _hash(data: Int64[np.ndarray, " _"]) -> Int64[np.ndarray, "4"]:
    return np.frombuffer(hashlib.sha256(data.data).digest(), np.int64)


def pack_documents(starts: Int64[np.ndarray, " _"], length: int) -> PackedRows:
    """Packs documents. One longer than a row becomes full rows and a rest."""
    targets = np.maximum(np.diff(starts) - 1, 0)
    full, rest = np.divmod(targets, length)
    if not targets.any():
        raise ConfigError(
            "no document has two tokens, so there are no targets: add text."
        )
    document = np.repeat(np.arange(len(full)), full)
    nth = np.arange(len(document)) - np.repeat(np.cumsum(full) - full, full)
    with_rest = np.flatnonzero(rest)
    segment_starts = np.concatenate([
        starts[document] + nth * length,
        starts[with_rest] + full[with_rest] * length,
    ])  # fmt: skip
    sizes = np.concatenate([np.full(len(document), length), rest[with_rest]])
    order = np.argsort(sizes, kind="stable")  # equal sizes keep their stream order
    row_starts, chosen = assign_rows(np.bincount(sizes, minlength=length + 1), order)
    return PackedRows(row_starts, segment_starts[chosen], sizes[chosen])


def assign_rows(
    counts: Int64[np.ndarray, " _"], segments: Integer[np.ndarray, " M"]
) -> tuple[Int64[np.ndarray, " _"], Integer[np.ndarray, " M"]]:
    """Row starts and the segments of all rows, for groups of rows with equal sizes.

    `counts[s]` is the number of segments of size s; `segments` are sorted by size.
    """
    next_of_size = np.cumsum(counts) - counts
    row_starts, assigned, total = [np.zeros(1, np.int64)], [], 0
    for rows, row in pack_best_fit(counts.tolist()):
        columns = []
        while row is not None:
            low = next_of_size[row.size]
            high = next_of_size[row.size] = low + rows * row.count
            columns.append(segments[low:high].reshape(rows, row.count))
            row = row.previous
        block = np.concatenate(columns[::-1], axis=1)
        row_starts.append(total + block.shape[1] * np.arange(1, rows + 1))
        assigned.append(block.reshape(-1))
        total += block.size
    return np.concatenate(row_starts), np.concatenate(assigned)


def pack_best_fit(counts: list[int]) -> Iterator[tuple[int, RowContents | None]]:
    """Best-fit decreasing of `counts[s]` segments of size s: (rows, their contents).

    The largest size goes first, into the rows with the least capacity that suffices. An
    empty row has the capacity of the largest size in `counts`. Rows with equal contents
    are one group, so that the work grows with the number of sizes, not of segments.
    Krell et al. 2021, arXiv:2107.02027, pack histograms for the same reason.
    """
    length = len(counts) - 1
    open_rows = OpenRows()
    for size in range(length, 0, -1):
        count = counts[size]
        while count:
            rows, capacity, row = open_rows.pop_best_fit(size) or (count, length, None)
            per_row = capacity // size
            full = min(rows, count // per_row)
            rest = count % per_row if full < rows else 0
            contents = RowContents(row, size, per_row)
            open_rows.add(full, capacity - per_row * size, contents)
            if rest:
                open_rows.add(1, capacity - rest * size, contents._replace(count=rest))
            if row is not None:
                open_rows.add(rows - full - min(rest, 1), capacity, row)
            count -= full * per_row + rest
    for groups in open_rows.groups.values():
        yield from groups


class OpenRows:
    """Groups of rows that have contents, by the capacity that is left."""

    def __init__(self):
        self.groups: dict[int, list[tuple[int, RowContents | None]]] = {}
        self.capacities: list[int] = []  # the keys, sorted

    def add(self, rows: int, capacity: int, row: RowContents) -> None:
        """Adds a group of `rows` rows with equal contents, unless it is empty."""
        if not rows:
            return
        if capacity not in self.groups:
            bisect.insort(self.capacities, capacity)
            self.groups[capacity] = []
        self.groups[capacity].append((rows, row))

    def pop_best_fit(self, size: int) -> tuple[int, int, RowContents | None] | None:
        """Removes a group of the least sufficient capacity: (rows, capacity, row)."""
        index = bisect.bisect_left(self.capacities, size)
        if index == len(self.capacities):
            return None
        capacity = self.capacities[index]
        rows, row = self.groups[capacity].pop()
        if not self.groups[capacity]:
            del self.groups[capacity], self.capacities[index]
        return rows, capacity, row
