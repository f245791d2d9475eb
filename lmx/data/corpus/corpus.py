"""Texts to learn from, and which of them are held out."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from lmx.config.registry import ConfigError, configurable

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Document(NamedTuple):
    """One text, never empty, and a name that is its own within the corpus."""

    name: str
    text: str


class InvalidDocument(NamedTuple):
    """What stands where a document should, and cannot be one."""

    kind: Literal["broken", "empty"]
    reason: str  # in few words, the same for all that are alike
    path: Path  # of the file
    location: str  # in the file, as "byte 24"
    advice: str = "repair it or leave it out."

    def to_error(self) -> ConfigError:
        """The fault as an error."""
        return ConfigError(
            f"{self.path}: {self.reason} at {self.location}: {self.advice}"
        )


class Span(NamedTuple):
    """A part of a corpus that can be read by itself: of one file, from here to there.

    Begin and end count what the corpus chooses: bytes, rows, records.
    """

    file: str  # its name within the corpus
    begin: int
    end: int
    bytes: int  # of text, roughly
    stamp: str  # another when the file is another


class Corpus(ABC):
    """Documents in an order that is always the same, in two splits."""

    @abstractmethod
    def read(self, split: Split) -> Iterator[Document]:
        """The documents of the split, which may be none."""

    def list_spans(self, size: int) -> Sequence[Span]:
        """The corpus in parts of about `size` bytes, where it can be parted."""
        return (Span("", 0, 1, 0, ""),)

    def read_span(
        self, span: Span, split: Split
    ) -> Iterator[Document | InvalidDocument]:
        """What `read` gives of that part, and what it refuses or passes over."""
        return self.read(split)

    def read_nonempty(self, split: Split) -> Iterator[Document]:
        """The documents of the split; a refusal if there are none."""
        document = None
        for document in self.read(split):
            yield document
        if document is None:
            raise self.empty_split_error(split)

    def empty_split_error(self, split: Split) -> ConfigError:
        """Says that a split is empty, and what to do."""
        return ConfigError(
            f"the {split} split of {self} is empty: give more documents, or hold"
            f" out a {'larger' if split == 'validation' else 'smaller'} fraction."
        )

    def compute_digest(self) -> str:
        """SHA-256 over the split, name and text of every document."""
        sha = hashlib.sha256()
        for split in SPLITS:
            for name, text in self.read(split):
                for part in (split, name, text):
                    data = part.encode("utf-8", "surrogateescape")
                    sha.update(b"%d:" % len(data))
                    sha.update(data)
        return sha.hexdigest()


def is_selected(name: str, fraction: float) -> bool:
    """Whether the name is among that fraction of all names; the same everywhere."""
    head = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8]
    return int.from_bytes(head, "big") < fraction * 2**64


def check_fraction(label: str, fraction: float) -> None:
    """Refuses what is no fraction that leaves something to train on."""
    if not 0 <= fraction < 1:
        raise ConfigError(f"{label} is {fraction}: at least 0 and less than 1.")


class Holdout(ABC):
    """Which part of a corpus is for validation."""

    @abstractmethod
    def select(self, document: Document, split: Split) -> Document | None:
        """What of the document belongs to the split: all, some of its text, nothing."""


@configurable
@dataclass(frozen=True, kw_only=True)
class HoldoutDocuments(Holdout):
    """Whole documents, chosen by a hash of their names: no other document matters."""

    fraction: float = 0.04

    def __post_init__(self):
        check_fraction("HoldoutDocuments.fraction", self.fraction)

    def select(self, document: Document, split: Split) -> Document | None:
        held = is_selected(document.name, self.fraction)
        return document if held == (split == "validation") else None


@configurable
@dataclass(frozen=True, kw_only=True)
class HoldoutTail(Holdout):
    """The last characters of each document, as nanoGPT cuts its one."""

    fraction: float = 0.1

    def __post_init__(self):
        check_fraction("HoldoutTail.fraction", self.fraction)

    def select(self, document: Document, split: Split) -> Document | None:
        name, text = document
        cut = int(len(text) * (1 - self.fraction))
        text = text[:cut] if split == "train" else text[cut:]
        return Document(name, text) if text else None


class SpanCorpus(Corpus):
    """A corpus that is read part by part, and a rule of which documents are held out.

    A subclass gives `spans`, and `every` document of one.
    """

    holdout: Holdout

    @abstractmethod
    def read_all(self, span: Span) -> Iterator[Document | InvalidDocument]:
        """The documents of that part, of both splits, and what is none."""

    def read_span(
        self, span: Span, split: Split
    ) -> Iterator[Document | InvalidDocument]:
        for item in self.read_all(span):
            kept = (
                item
                if isinstance(item, InvalidDocument)
                else self.holdout.select(item, split)
            )
            if kept is not None:
                yield kept

    def read(self, split: Split) -> Iterator[Document]:
        for span in self.list_spans(SPAN_BYTES):
            for item in self.read_span(span, split):
                if isinstance(item, Document):
                    yield item
                elif item.kind == "broken":
                    raise item.to_error()


SPAN_BYTES = 64 * 2**20  # bytes of a part, where only the order matters
