"""Batches of tokens as a function of (seed, step), and what every source offers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64

from lmx.config.names import ConfigError, configurable
from lmx.core.batch import Batch as Batch
from lmx.data.corpora.corpus import Corpus, Split
from lmx.data.order import Order, Shuffled, Stream
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
        """B, rows over all devices."""
        ...

    @property
    def length(self) -> int:
        """T, tokens."""
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

    Documents follow one another in one long stream, which is cut into rows.
    """

    corpus: Corpus
    tokenizer: Tokenizer
    split: Split = "train"
    batch: int  # B, rows over all devices
    length: int  # T, tokens
    order: Order = Shuffled()

    def __post_init__(self):
        for name in ("batch", "length"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"Tokens.{name} is {getattr(self, name)}: at least 1."
                )

    def open(self) -> "TokenRows":
        """Trains the tokenizer and tokenises the corpus where no cache has them yet."""
        codec = self.tokenizer.open(self.corpus)
        store = open_store(self.corpus, codec, self.split)
        if store.size < 2:
            raise ConfigError(
                f"the {self.split} split of {self.corpus} has one token, which predicts"
                " nothing: give it more text."
            )
        stream = Stream(store.size, self.batch, self.length)
        return TokenRows(
            store=store,
            tokenizer=codec,
            order=self.order,
            stream=stream,
            steps=self.order.steps(stream),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenRows:
    """The rows of a tokenised split, in some order."""

    store: Store
    tokenizer: Codec
    order: Order
    stream: Stream
    steps: int | None  # batches in one pass, the last of them perhaps not full

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        """Those rows of the batch of that step: a pure function of its arguments."""
        wanted = np.arange(self.stream.batch)[rows]
        offsets = self.order.offsets(seed, step, wanted, self.stream)
        return cut(self.store, offsets, self.stream.length)

    @property
    def batch(self) -> int:
        return self.stream.batch

    @property
    def length(self) -> int:
        return self.stream.length

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


def cut(store: Store, offsets: Int64[np.ndarray, " B"], length: int) -> Batch:
    """The rows of `length` tokens that begin at those offsets of the stream.

    A target is learned where it is of the same document as the token before it: the
    end of a document is, the beginning of the next is not. Past the stream is padding.
    """
    index = offsets[:, None] + np.arange(length + 1)
    live = index[:, 1:] < store.size
    index = np.minimum(index, store.size - 1)
    token = store.take(index).astype(np.int32)
    document = np.searchsorted(store.starts, index, side="right") - 1
    begins = np.maximum(store.starts[document], offsets[:, None])
    same = document[:, 1:] == document[:, :-1]
    segment = document[:, :-1] - document[:, :1] + 1
    return Batch(
        tokens=np.where(live, token[:, :-1], 0),
        targets=np.where(live, token[:, 1:], 0),
        weights=(live & same).astype(np.float32),
        positions=np.where(live, (index - begins)[:, :-1], 0).astype(np.int32),
        segments=np.where(live, segment, 0).astype(np.int32),
    )
