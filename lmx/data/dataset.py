"""Batches of tokens as a function of (seed, step), and what every source offers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64

from lmx.config.registry import ConfigError, configurable
from lmx.core.batch import Batch as Batch
from lmx.data.corpus.corpus import Corpus, Split
from lmx.data.sampling.order import Order, Shuffled
from lmx.data.sampling.packing import (
    ConcatAndSplit,
    DocumentSpan,
    DocumentStream,
    PackedDocuments,
    Packing,
    fill_batch,
    slice_stream,
)
from lmx.data.sampling.schedule import BatchSchedule, PiecewiseConstant, RowRequest
from lmx.data.store.cached import open_cached_store
from lmx.data.store.store import Store
from lmx.data.tokenizer.base import Tokenizer, TokenizerConfig


@runtime_checkable
class Dataset(Protocol):
    """An opened source: any batch of a run, in any order, as often as wanted."""

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        """Those rows of the batch of that step, the same whoever else reads which."""
        ...

    @property
    def batch_size(self) -> int:
        """B, rows over all devices, of the first batch."""
        ...

    @property
    def sequence_length(self) -> int:
        """T, tokens of each row of the first batch."""
        ...

    @property
    def vocab(self) -> int:
        """V, one more than the largest token."""
        ...

    @property
    def steps(self) -> int | None:
        """Batches in one pass, rounded up; None where the source has no end."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What the tokens mean as text; None where they mean none."""
        ...

    @property
    def token_bytes(self) -> Int32[np.ndarray, " V"] | None:
        """UTF-8 bytes that each token stands for, 0 for specials; None without text."""
        ...

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """What the data are, in digests: equal where the batches are."""
        ...


class DatasetConfig(ABC):
    """What an experiment takes its data from."""

    @abstractmethod
    def open(self) -> Dataset:
        """The source made ready to read."""


@configurable
@dataclass(frozen=True, kw_only=True)
class TextDataset(DatasetConfig):
    """One split of a corpus, tokenised once and read as rows of tokens.

    Attributes:
        batch: B, rows over all devices.
        length: T, tokens of a row. Each length is packed by itself, and its rows are
            numbered through: those of another length are read as if it were not there.
    """

    corpus: Corpus
    tokenizer: TokenizerConfig
    split: Split = "train"
    batch_size: int | PiecewiseConstant
    sequence_length: int | PiecewiseConstant
    order: Order = Shuffled()
    packing: Packing = ConcatAndSplit()

    def __post_init__(self):
        BatchSchedule.build("Tokens", self.batch_size, self.sequence_length)

    def open(self) -> "TokenDataset":
        """Trains the tokenizer and tokenises the corpus where no cache has them yet."""
        codec = self.tokenizer.open(self.corpus)
        store = open_cached_store(self.corpus, codec, self.split)
        if store.size < 2:
            raise ConfigError(
                f"the {self.split} split of {self.corpus} has one token, which predicts"
                " nothing: give it more text."
            )
        return TokenDataset(
            store=store,
            tokenizer=codec,
            order=self.order,
            packing=self.packing,
            schedule=BatchSchedule.build(
                "Tokens", self.batch_size, self.sequence_length
            ),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenDataset:
    """The rows of a tokenised split, in some order."""

    store: Store
    tokenizer: Tokenizer
    order: Order
    packing: Packing
    schedule: BatchSchedule
    _packings: dict[int, PackedDocuments] = field(default_factory=dict, init=False)

    def __post_init__(self):
        for stage in self.schedule.stages:  # what cannot be read is refused now
            self.pack(stage.sequence_length).count_rows(self.order)

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        """Those rows of the batch of that step: a pure function of its arguments."""
        return self.read(self.schedule.request(seed, step, rows))

    def read(self, request: RowRequest) -> Batch:
        """Rows by their numbers."""
        pieces = self.pack(request.sequence_length).select_segments(request, self.order)
        return fill_batch(
            self.store, pieces, len(request.rows), request.sequence_length
        )

    def locate(self, wanted: RowRequest) -> list[DocumentSpan]:
        """The documents of rows by their numbers; what is padding has none."""
        row, begin, slots, _ = self.pack(wanted.sequence_length).select_segments(
            wanted, self.order
        )
        segment = np.arange(1, len(row) + 1) - np.searchsorted(row, row)
        document = np.searchsorted(self.store.starts, begin, side="right") - 1
        offset = begin - self.store.starts[document]
        facts = (wanted.rows[row], segment, document, offset, slots)
        return [
            DocumentSpan(row, segment, *self.store.locate(document), offset, length)
            for row, segment, document, offset, length in zip(
                *(x.tolist() for x in facts), strict=True
            )
        ]

    def pack(self, length: int) -> PackedDocuments:
        """The documents in rows of that length, packed when first asked for."""
        if length not in self._packings:
            self._packings[length] = self.packing.pack(self.store, length)
        return self._packings[length]

    @property
    def steps(self) -> int | None:
        """Batches in one pass, the last perhaps not full; None where shapes change."""
        rows = self.pack(self.sequence_length).count_rows(self.order)
        one = len(self.schedule.stages) == 1
        return -(-rows // self.batch_size) if one and rows is not None else None

    @property
    def batch_size(self) -> int:
        return self.schedule.stage_at(0).batch_size

    @property
    def sequence_length(self) -> int:
        return self.schedule.stage_at(0).sequence_length

    @property
    def vocab(self) -> int:
        return self.tokenizer.vocab

    @property
    def token_bytes(self) -> Int32[np.ndarray, " V"]:
        return self.tokenizer.token_bytes

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return self.store.fingerprint

    @property
    def tokens(self) -> int:
        """Tokens in the split, with those that begin and end documents."""
        return self.store.size

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of text in the split."""
        return self.store.bytes

    @property
    def documents(self) -> int:
        """Documents in the split."""
        return self.store.documents


def slice_rows(
    documents: DocumentStream, offsets: Int64[np.ndarray, " B"], length: int
) -> Batch:
    """The rows of `length` tokens that begin at those offsets of the stream.

    A target is learned where it is of the same document as the token before it: the
    end of a document is, the beginning of the next is not. Past the stream is padding.
    """
    pieces = slice_stream(documents, offsets, length)
    return fill_batch(documents, pieces, len(offsets), length)
