"""Batches of tokens as a function of (seed, step), and what every source offers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64

from lmx.config.names import ConfigError, configurable
from lmx.core.batch import Batch as Batch
from lmx.data.corpora.corpus import Corpus, Split
from lmx.data.rows.order import Order, Shuffled
from lmx.data.rows.packing import (
    Concatenate,
    Documents,
    Origin,
    Packed,
    Packing,
    filled,
    stretches,
)
from lmx.data.rows.schedule import Course, Stepwise, Wanted
from lmx.data.store.cached import open_store
from lmx.data.store.store import Store
from lmx.data.tokenizers.codec import Codec, Tokenizer


@runtime_checkable
class Rows(Protocol):
    """An opened source: any batch of a run, in any order, as often as wanted."""

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        """Those rows of the batch of that step, the same whoever else reads which."""
        ...

    @property
    def batch(self) -> int:
        """B, rows over all devices, of the first batch."""
        ...

    @property
    def length(self) -> int:
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
    def tokenizer(self) -> Codec | None:
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


class Source(ABC):
    """What an experiment takes its data from."""

    @abstractmethod
    def open(self) -> Rows:
        """The source made ready to read."""


@configurable
@dataclass(frozen=True, kw_only=True)
class Tokens(Source):
    """One split of a corpus, tokenised once and read as rows of tokens.

    Attributes:
        batch: B, rows over all devices.
        length: T, tokens of a row. Each length is packed by itself, and its rows are
            numbered through: those of another length are read as if it were not there.
    """

    corpus: Corpus
    tokenizer: Tokenizer
    split: Split = "train"
    batch: int | Stepwise
    length: int | Stepwise
    order: Order = Shuffled()
    packing: Packing = Concatenate()

    def __post_init__(self):
        Course.of("Tokens", self.batch, self.length)

    def open(self) -> "TokenRows":
        """Trains the tokenizer and tokenises the corpus where no cache has them yet."""
        codec = self.tokenizer.open(self.corpus)
        store = open_store(self.corpus, codec, self.split)
        if store.size < 2:
            raise ConfigError(
                f"the {self.split} split of {self.corpus} has one token, which predicts"
                " nothing: give it more text."
            )
        return TokenRows(
            store=store,
            tokenizer=codec,
            order=self.order,
            packing=self.packing,
            course=Course.of("Tokens", self.batch, self.length),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenRows:
    """The rows of a tokenised split, in some order."""

    store: Store
    tokenizer: Codec
    order: Order
    packing: Packing
    course: Course
    _packed: dict[int, Packed] = field(default_factory=dict, init=False)

    def __post_init__(self):
        for stage in self.course.stages:  # what cannot be read is refused now
            self.packed(stage.length).rows(self.order)

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        """Those rows of the batch of that step: a pure function of its arguments."""
        return self.read(self.course.wanted(seed, step, rows))

    def read(self, wanted: Wanted) -> Batch:
        """Rows by their numbers."""
        pieces = self.packed(wanted.length).pieces(wanted, self.order)
        return filled(self.store, pieces, len(wanted.rows), wanted.length)

    def origins(self, wanted: Wanted) -> list[Origin]:
        """The documents of rows by their numbers; what is padding has none."""
        row, begin, slots, _ = self.packed(wanted.length).pieces(wanted, self.order)
        segment = np.arange(1, len(row) + 1) - np.searchsorted(row, row)
        document = np.searchsorted(self.store.starts, begin, side="right") - 1
        offset = begin - self.store.starts[document]
        facts = (wanted.rows[row], segment, document, offset, slots)
        return [
            Origin(row, segment, *self.store.place(document), offset, length)
            for row, segment, document, offset, length in zip(
                *(x.tolist() for x in facts), strict=True
            )
        ]

    def packed(self, length: int) -> Packed:
        """The documents in rows of that length, packed when first asked for."""
        if length not in self._packed:
            self._packed[length] = self.packing.pack(self.store, length)
        return self._packed[length]

    @property
    def steps(self) -> int | None:
        """Batches in one pass, the last perhaps not full; None where shapes change."""
        rows = self.packed(self.length).rows(self.order)
        one = len(self.course.stages) == 1
        return -(-rows // self.batch) if one and rows is not None else None

    @property
    def batch(self) -> int:
        return self.course.at(0).batch

    @property
    def length(self) -> int:
        return self.course.at(0).length

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


def cut(documents: Documents, offsets: Int64[np.ndarray, " B"], length: int) -> Batch:
    """The rows of `length` tokens that begin at those offsets of the stream.

    A target is learned where it is of the same document as the token before it: the
    end of a document is, the beginning of the next is not. Past the stream is padding.
    """
    pieces = stretches(documents, offsets, length)
    return filled(documents, pieces, len(offsets), length)
