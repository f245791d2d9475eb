"""Packing: how documents fill sequences of fixed length."""

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
from lmx.data.schedule import RowRequest


@runtime_checkable
class DocumentStream(Protocol):
    """Tokens of documents, concatenated to one stream."""

    @property
    def size(self) -> int:
        """Tokens in total."""
        ...

    @property
    def starts(self) -> Int64[np.ndarray, " _"]:
        """The offset of each document, then the end of the last."""
        ...

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the tokens."""
        ...

    def read(self, begin: int, end: int) -> UInt[np.ndarray, " M"]:
        """The tokens of [begin, end)."""
        ...


class Segments(NamedTuple):
    """Segments of rows, from left to right; each is a slice of a document.

    The target of a segment's last token is the next token of the stream, which has loss
    weight if it is of the same document.
    """

    row: Int64[np.ndarray, " M"]
    starts: Int64[np.ndarray, " M"]  # in the stream
    lengths: Int64[np.ndarray, " M"]  # tokens in the row
    target_counts: Int64[np.ndarray, " M"]  # targets with weight, from the first on


class PackedDocuments(ABC):
    """Documents packed into rows of one length, in some order."""

    @property
    @abstractmethod
    def rows(self) -> int | None:
        """Rows in one pass; None if there are no passes."""

    @abstractmethod
    def select(self, request: RowRequest) -> Segments:
        """The segments of the requested rows. The rest of a row is padding."""


class Packing(ABC):
    """A method of packing documents into rows."""

    @abstractmethod
    def pack(
        self, documents: DocumentStream, order: Order, length: int
    ) -> PackedDocuments:
        """Packs documents into rows of `length` tokens."""


@configurable
@dataclass(frozen=True, kw_only=True)
class ConcatAndSplit(Packing):
    """Concatenates all documents and splits the stream into rows.

    Only the last row has padding. Most documents are split between rows.
    """

    def pack(
        self, documents: DocumentStream, order: Order, length: int
    ) -> "ConcatenatedRows":
        return ConcatenatedRows(documents, order, length)


@dataclass(frozen=True)
class ConcatenatedRows(PackedDocuments):
    """Slices of one token stream."""

    documents: DocumentStream
    order: Order
    sequence_length: int

    @property
    def stream(self) -> TokenStream:
        """The size of the stream."""
        return TokenStream(self.documents.size, self.sequence_length)

    @property
    def rows(self) -> int | None:
        return self.order.count_rows(self.stream)

    def select(self, request: RowRequest) -> Segments:
        offsets = self.order.find_offsets(request, self.stream)
        return slice_stream(self.documents, offsets, self.sequence_length)


def slice_stream(
    documents: DocumentStream, offsets: Int64[np.ndarray, " B"], length: int
) -> Segments:
    """The segments of rows of `length` tokens at those offsets of the stream.

    The last token of a document is a target, the first token of the next is not.
    """
    starts, last = documents.starts, documents.size - 1  # the last has no next token
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
    """The numbers of ranges with `counts` numbers from `low` on: (range, number)."""
    row = np.repeat(np.arange(len(low)), counts)
    before = np.cumsum(counts) - counts
    return row, np.arange(len(row)) + np.repeat(low - before, counts)


@configurable
@dataclass(frozen=True, kw_only=True)
class BestFitPacking(Packing):
    """Packs whole documents by best-fit decreasing.

    A document longer than a row is split into full rows and a rest, which is packed as
    a document. Each part repeats the last token of the part before, so that every token
    but a document's first is a target once. The rows are the same in each epoch. A
    document of one token has no target and is left out.
    Ding et al. 2024, arXiv:2404.10830, section 3.
    """

    def pack(
        self, documents: DocumentStream, order: Order, length: int
    ) -> "BestFitRows":
        if not isinstance(order, RowOrder):
            raise ConfigError(
                f"{type(order).__name__} slices a stream, and @BestFitPacking() has"
                " fixed rows: set order = @Shuffled(), or packing = @ConcatAndSplit()."
            )
        packed = load_or_pack(documents.starts, documents.fingerprint, length)
        return BestFitRows(packed, order)


@dataclass(frozen=True)
class BestFitRows(PackedDocuments):
    """Rows of whole documents."""

    packed: PackedRows
    order: RowOrder

    @property
    def rows(self) -> int:
        return len(self.packed.row_starts) - 1

    def select(self, request: RowRequest) -> Segments:
        chosen = self.order.select_rows(request, self.rows)
        bounds = self.packed.row_starts
        index = np.minimum(chosen, self.rows - 1)
        counts = np.where(chosen < self.rows, bounds[index + 1] - bounds[index], 0)
        row, segment = repeat_ranges(bounds[index], counts)
        lengths = self.packed.lengths[segment]
        return Segments(row, self.packed.starts[segment], lengths, lengths)


def empty_batch(rows: int, length: int) -> Batch:
    """A batch of padding."""
    kinds = (np.int32, np.int32, np.float32, np.int32, np.int32)
    return Batch(*(np.zeros((rows, length), kind) for kind in kinds))


def fill_batch(
    documents: DocumentStream, segments: Segments, shape: tuple[int, int]
) -> Batch:
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
        text = documents.read(offset, offset + length + 1)
        tokens[start:end] = text[:-1]
        targets[start:end] = text[1:]
        weights[start : start + target_count] = 1
        positions[start:end] = ramp[:length]
        segment_ids[start:end] = segment
        start = end
    return batch
