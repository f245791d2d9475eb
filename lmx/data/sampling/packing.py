"""How documents become rows of one length, and a row's pieces a batch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt

from lmx.config.registry import ConfigError, configurable
from lmx.core.batch import Batch
from lmx.data.sampling.best_fit import PackedRows, load_or_pack
from lmx.data.sampling.order import Order, RowOrder, TokenStream
from lmx.data.sampling.schedule import RowRequest


@runtime_checkable
class DocumentStream(Protocol):
    """Tokens of documents that follow one another in one stream."""

    @property
    def size(self) -> int:
        """Tokens in all."""
        ...

    @property
    def starts(self) -> Int64[np.ndarray, " _"]:
        """Where each document begins, then where all end."""
        ...

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """What they are, in digests."""
        ...

    def read(self, begin: int, end: int) -> UInt[np.ndarray, " M"]:
        """The tokens of [begin, end)."""
        ...


class Segments(NamedTuple):
    """Stretches of documents, in the order in which they fill their rows.

    A piece takes `slots` tokens of its row. The target of its last one is the next
    token of the stream, to be learned if it is of the same document.
    """

    row: Int64[np.ndarray, " M"]
    starts: Int64[np.ndarray, " M"]
    lengths: Int64[np.ndarray, " M"]
    target_counts: Int64[
        np.ndarray, " M"
    ]  # how many of the targets are, from the first on


class DocumentSpan(NamedTuple):
    """Which document a segment of a row tells, and how much of it."""

    row: int  # of the batch
    segment: int  # of the row, as in `Batch.segments`
    source: str
    document: int | None  # its number in the source; None where documents have none
    offset: int | None  # of its first token here
    length: int  # tokens of the document, beside which a row may have others


class PackedDocuments(ABC):
    """Documents, packed into rows of one length."""

    @abstractmethod
    def count_rows(self, order: Order) -> int | None:
        """Rows in one pass, None where there is no such thing."""

    @abstractmethod
    def select_segments(self, request: RowRequest, order: Order) -> Segments:
        """What the wanted rows are made of; what they leave empty is padding."""


class Packing(ABC):
    """How documents are packed into rows."""

    @abstractmethod
    def pack(self, documents: DocumentStream, length: int) -> PackedDocuments:
        """The documents in rows of that many tokens."""


@configurable
@dataclass(frozen=True, kw_only=True)
class ConcatAndSplit(Packing):
    """Documents follow one another in one long stream, which is cut into rows.

    No row has padding but the last; most documents begin in one row and end in another.
    """

    def pack(self, documents: DocumentStream, length: int) -> "ConcatenatedRows":
        return ConcatenatedRows(documents, length)


@dataclass(frozen=True)
class ConcatenatedRows(PackedDocuments):
    """One stream, cut into rows."""

    documents: DocumentStream
    length: int

    def count_rows(self, order: Order) -> int | None:
        return order.count_rows(TokenStream(self.documents.size, self.length))

    def select_segments(self, request: RowRequest, order: Order) -> Segments:
        offsets = order.find_offsets(
            request, TokenStream(self.documents.size, self.length)
        )
        return slice_stream(self.documents, offsets, self.length)


def slice_stream(
    documents: DocumentStream, offsets: Int64[np.ndarray, " B"], length: int
) -> Segments:
    """The pieces of the rows of `length` tokens that begin there in the stream."""
    starts, last = documents.starts, documents.size - 1  # which no token follows
    ends = np.minimum(offsets + length, last)
    low = np.searchsorted(starts, offsets, side="right") - 1
    high = np.searchsorted(starts, ends, side="left")  # after the last to begin before
    counts = np.where(offsets < ends, high - low, 0)
    row, document = repeat_ranges(low, counts)
    begin = np.maximum(starts[document], offsets[row])
    after = starts[document + 1]
    slots = np.minimum(after, ends[row]) - begin
    some = slots > 0  # of a document that is not empty
    learned = np.minimum(after - 1, ends[row]) - begin
    return Segments(row[some], begin[some], slots[some], learned[some])


def repeat_ranges(
    low: Int64[np.ndarray, " M"], counts: Int64[np.ndarray, " M"]
) -> tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]:
    """For each row, `counts` numbers from `low` on: which row, and which number."""
    row = np.repeat(np.arange(len(low)), counts)
    before = np.cumsum(counts) - counts
    return row, np.arange(len(row)) + np.repeat(low - before, counts)


@configurable
@dataclass(frozen=True, kw_only=True)
class BestFitPacking(Packing):
    """Each document whole in one row, where the row that it fits best has room for it.

    A document longer than a row is split into full rows and a rest, which is packed as
    a document; each part repeats the last token of the part before, so that every token
    but a document's first is a target once. Each epoch has the same rows, in another
    order. A document of one token has nothing to learn and is in no row.
    Ding et al. 2024, arXiv:2404.10830, section 3.
    """

    def pack(self, documents: DocumentStream, length: int) -> "BestFitRows":
        return BestFitRows(
            load_or_pack(documents.starts, documents.fingerprint, length)
        )


@dataclass(frozen=True)
class BestFitRows(PackedDocuments):
    """Rows of whole documents."""

    fit: PackedRows

    def count_rows(self, order: Order) -> int | None:
        self._check_order(order)
        return self.fit.rows

    def select_segments(self, request: RowRequest, order: Order) -> Segments:
        places = self._check_order(order).select_rows(request, self.fit.rows)
        firsts = self.fit.row_starts
        place = np.minimum(places, self.fit.rows - 1)
        counts = np.where(places < self.fit.rows, firsts[place + 1] - firsts[place], 0)
        row, piece = repeat_ranges(firsts[place], counts)
        slots = self.fit.lengths[piece].astype(np.int64)
        return Segments(row, self.fit.starts[piece], slots, slots)

    def _check_order(self, order: Order) -> RowOrder:
        if not isinstance(order, RowOrder):
            raise ConfigError(
                f"{type(order).__name__} cuts rows out of a stream, and @BestFitPacking() has"
                " rows already: set order = @Shuffled(), or packing = @ConcatAndSplit()."
            )
        return order


def empty_batch(rows: int, length: int) -> Batch:
    """A batch of nothing, to be filled."""
    return Batch(
        tokens=np.zeros((rows, length), np.int32),
        targets=np.zeros((rows, length), np.int32),
        weights=np.zeros((rows, length), np.float32),
        positions=np.zeros((rows, length), np.int32),
        segments=np.zeros((rows, length), np.int32),
    )


def fill_batch(
    documents: DocumentStream, pieces: Segments, rows: int, length: int
) -> Batch:
    """So many rows of `length` tokens, filled with the pieces from the left.

    Positions begin at 0 with each piece; segments count the pieces of a row from 1 on.
    """
    batch = empty_batch(rows, length)
    tokens, targets, weights, positions, segments = (x.reshape(-1) for x in batch)
    ramp = np.arange(length, dtype=np.int32)
    row, at, segment = -1, 0, 0
    for number, begin, slots, learned in zip(
        *(x.tolist() for x in pieces), strict=True
    ):
        if number != row:
            row, at, segment = number, number * length, 0
        segment += 1
        to = at + slots
        text = documents.read(begin, begin + slots + 1)
        tokens[at:to] = text[:-1]
        targets[at:to] = text[1:]
        weights[at : at + learned] = 1
        positions[at:to] = ramp[:slots]
        segments[at:to] = segment
        at = to
    return batch
