"""Packing: how documents fill sequences of fixed length."""

import bisect
import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Integer

from lmx.config.registry import ConfigError, configurable, require
from lmx.core.batch import Batch
from lmx.core.files import get_cache_path, write_atomic
from lmx.data.sampling.order import Order, RowOrder
from lmx.data.schedule import RowRequest
from lmx.data.store.store import Store

FORMAT_VERSION = 2  # increase it when the files or their contents change


class Segments(NamedTuple):
    """Segments of rows, from left to right; each is a slice of a document.

    The target of a segment's last token is the next token of the stream, which has loss
    weight if it is of the same document.
    """

    row: Int64[np.ndarray, " M"]
    starts: Int64[np.ndarray, " M"]  # in the stream
    lengths: Int64[np.ndarray, " M"]  # tokens in the row
    target_counts: Int64[np.ndarray, " M"]  # leading targets with loss weight


class PackedDocuments(NamedTuple):
    """Documents packed into rows of one length, in some order."""

    rows: int | None  # in one pass; None if there are no passes
    select: Callable[[RowRequest], Segments]  # the rest of a row is padding


class Packing(ABC):
    """A method of packing documents into rows."""

    @abstractmethod
    def pack(self, store: Store, order: Order, length: int) -> PackedDocuments:
        """Packs documents into rows of `length` tokens."""


@configurable
@dataclass(frozen=True, kw_only=True)
class ConcatAndSplit(Packing):
    """Concatenates all documents and splits the stream into rows.

    Only the last row has padding. Most documents are split between rows.
    """

    def pack(self, store: Store, order: Order, length: int) -> PackedDocuments:
        def select(request: RowRequest) -> Segments:
            return slice_stream(store, order.find_offsets(request, store.size), length)

        return PackedDocuments(order.count_rows(store.size, length), select)


def slice_stream(
    store: Store, offsets: Int64[np.ndarray, " B"], length: int
) -> Segments:
    """The segments of rows of `length` tokens at those offsets of the stream.

    The last token of a document is a target, the first token of the next is not.
    """
    starts, last = store.starts, store.size - 1  # the last has no next token
    ends = np.minimum(offsets + length, last)
    low = np.searchsorted(starts, offsets, side="right") - 1
    high = np.searchsorted(starts, ends, side="left")
    counts = np.where(offsets < ends, high - low, 0)
    row, document = repeat_ranges(low, counts)
    begin = np.maximum(starts[document], offsets[row])
    document_end = starts[document + 1]
    lengths = np.minimum(document_end, ends[row]) - begin
    targets = np.minimum(document_end - 1, ends[row]) - begin
    nonempty = lengths > 0
    columns = (row, begin, lengths, targets)
    return Segments(*(column[nonempty] for column in columns))


def repeat_ranges(
    low: Int64[np.ndarray, " M"], counts: Int64[np.ndarray, " M"]
) -> tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]:
    """Enumerates the ranges [low, low + counts): the range index, and each number."""
    row = np.repeat(np.arange(len(low)), counts)
    before = np.cumsum(counts) - counts
    return row, np.arange(len(row)) + np.repeat(low - before, counts)


@configurable
@dataclass(frozen=True, kw_only=True)
class BestFitPacking(Packing):
    """Packs whole documents by best-fit decreasing.

    A document longer than a row is split into full rows and a remainder, which is
    packed as a document. Each part repeats the last token of the part before, so every
    token but a document's first is a target once. The rows are the same in each epoch.
    A document of one token has no target and is left out.
    Ding et al. 2024, arXiv:2404.10830, section 3.
    """

    def pack(self, store: Store, order: Order, length: int) -> PackedDocuments:
        if not isinstance(order, RowOrder):
            raise ConfigError(
                f"{type(order).__name__} slices a stream, and @BestFitPacking() has"
                " fixed rows: set order = @Shuffled(), or packing = @ConcatAndSplit()."
            )
        packed = load_or_pack(store.starts, store.fingerprint, length)
        bounds, rows = packed.row_starts, len(packed.row_starts) - 1

        def select(request: RowRequest) -> Segments:
            chosen = order.select_rows(request, rows)
            index = np.minimum(chosen, rows - 1)
            counts = np.where(chosen < rows, bounds[index + 1] - bounds[index], 0)
            row, segment = repeat_ranges(bounds[index], counts)
            lengths = packed.lengths[segment]
            return Segments(row, packed.starts[segment], lengths, lengths)

        return PackedDocuments(rows, select)


class RowContents(NamedTuple):
    """Linked list of the contents of a row: `count` equal segments after `previous`."""

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
    path = get_cache_path("rows", FORMAT_VERSION, dict(fingerprint), length)
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
    """Maps packed rows into memory. They must match their hash."""
    array = np.asarray(np.memmap(path, np.int64, mode="r"))
    digest, count, data = array[:4], array[4], array[5:]
    if (_hash(array[4:]) != digest).any():
        raise ValueError("the file is damaged")
    return PackedRows(*np.split(data, [count, (len(data) + count) // 2]))


def _hash(data: Int64[np.ndarray, " _"]) -> Int64[np.ndarray, "4"]:
    return np.frombuffer(hashlib.sha256(data.data).digest(), np.int64)


def pack_documents(starts: Int64[np.ndarray, " _"], length: int) -> PackedRows:
    """Packs documents. One longer than a row becomes full rows and a remainder."""
    targets = np.maximum(np.diff(starts) - 1, 0)
    full, remainder = np.divmod(targets, length)
    require(
        targets.any(), "no document has two tokens, so there are no targets: add text."
    )
    document, nth = repeat_ranges(np.zeros_like(full), full)
    with_remainder = np.flatnonzero(remainder)
    segment_starts = np.concatenate([
        starts[document] + nth * length,
        starts[with_remainder] + full[with_remainder] * length,
    ])  # fmt: skip
    sizes = np.concatenate([np.full(len(document), length), remainder[with_remainder]])
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


def empty_batch(rows: int, length: int) -> Batch:
    """A batch of padding."""
    dtypes = (np.int32, np.int32, np.float32, np.int32, np.int32)
    return Batch(*(np.zeros((rows, length), dtype) for dtype in dtypes))


def fill_batch(store: Store, segments: Segments, shape: tuple[int, int]) -> Batch:
    """A batch of (rows, tokens) that is filled with segments from the left.

    Positions start at 0 in each segment. Segment ids count from 1 in each row.
    """
    batch = empty_batch(*shape)
    tokens, targets, weights, positions, segment_ids = (x.reshape(-1) for x in batch)
    ramp = np.arange(shape[1], dtype=np.int32)
    last_row, start, segment = -1, 0, 0
    for row, offset, length, target_count in zip(
        *(column.tolist() for column in segments), strict=True
    ):
        if row != last_row:
            last_row, start, segment = row, row * shape[1], 0
        segment += 1
        end = start + length
        text = store.read(offset, offset + length + 1)
        tokens[start:end] = text[:-1]
        targets[start:end] = text[1:]
        weights[start : start + target_count] = 1
        positions[start:end] = ramp[:length]
        segment_ids[start:end] = segment
        start = end
    return batch
