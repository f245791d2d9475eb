"""Corpora: documents in a fixed order, divided into a train and a validation split."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from lmx.config.registry import ConfigError, configurable

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPAN_BYTES = 64 * 2**20  # of a span, where only the order of documents matters


class Document(NamedTuple):
    """A text, never empty, and its name, which is unique within the corpus."""

    name: str
    text: str


class InvalidDocument(NamedTuple):
    """An entry of a file that is not a document: malformed, or without text."""

    kind: Literal["invalid", "empty"]
    reason: str  # short, and equal for similar entries
    path: Path  # of the file
    location: str  # within the file, such as "byte 24"
    advice: str = "repair it or leave it out."

    def to_error(self) -> ConfigError:
        """Returns an error with the file, the reason and the location."""
        return ConfigError(
            f"{self.path}: {self.reason} at {self.location}: {self.advice}"
        )


Items = Iterator[Document | InvalidDocument]


class Span(NamedTuple):
    """A part of a corpus that can be read on its own: a range of one file.

    The corpus chooses the unit of begin and end: bytes, rows or records.
    """

    file: str  # its name within the corpus
    begin: int
    end: int
    bytes: int  # of text, approximately
    stamp: str  # differs if the file was changed


class Corpus(ABC):
    """Documents in a fixed order, divided into two splits."""

    @abstractmethod
    def read_span(self, span: Span, split: Split) -> Items:
        """Yields the documents of the split in that span, and invalid entries."""

    def list_spans(self, size: int) -> Sequence[Span]:
        """Divides the corpus into spans of about `size` bytes, if it can be divided."""
        return (Span("", 0, 1, 0, ""),)

    def read(self, split: Split) -> Iterator[Document]:
        """Yields the documents of the split. Skips empty ones, refuses invalid ones."""
        for span in self.list_spans(SPAN_BYTES):
            for item in self.read_span(span, split):
                if isinstance(item, Document):
                    yield item
                elif item.kind == "invalid":
                    raise item.to_error()

    def read_nonempty(self, split: Split) -> Iterator[Document]:
        """Yields the documents of the split. Refuses a split without documents."""
        document = None
        for document in self.read(split):
            yield document
        if document is None:
            raise ConfigError(
                f"the {split} split of {self} is empty: add documents, or hold out a"
                f" {'larger' if split == 'validation' else 'smaller'} fraction."
            )

    def compute_digest(self) -> str:
        """Returns a SHA-256 of the split, name and text of every document."""
        sha = hashlib.sha256()
        for split in SPLITS:
            for document in self.read(split):
                for part in (split, *document):
                    data = part.encode("utf-8", "surrogateescape")
                    sha.update(b"%d:" % len(data))
                    sha.update(data)
        return sha.hexdigest()


def is_selected(name: str, fraction: float) -> bool:
    """Whether a hash of the name is in the lowest `fraction` of all hashes."""
    head = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8]
    return int.from_bytes(head, "big") < fraction * 2**64


def check_fraction(label: str, fraction: float) -> None:
    """Refuses a fraction to hold out that leaves nothing to train on."""
    if not 0 <= fraction < 1:
        raise ConfigError(f"{label} is {fraction}: at least 0 and less than 1.")


class Holdout(ABC):
    """Selects which part of a corpus is for validation."""

    @abstractmethod
    def select(self, document: Document, split: Split) -> Document | None:
        """Returns the part of the document that belongs to the split, if any."""


@configurable
@dataclass(frozen=True, kw_only=True)
class HoldoutDocuments(Holdout):
    """Holds out documents by a hash of their names, independent of other documents."""

    fraction: float = 0.04

    def __post_init__(self):
        check_fraction("HoldoutDocuments.fraction", self.fraction)

    def select(self, document: Document, split: Split) -> Document | None:
        held_out = is_selected(document.name, self.fraction)
        return document if held_out == (split == "validation") else None


@configurable
@dataclass(frozen=True, kw_only=True)
class HoldoutTail(Holdout):
    """Holds out the last characters of each document, as nanoGPT does with one text."""

    fraction: float = 0.1

    def __post_init__(self):
        check_fraction("HoldoutTail.fraction", self.fraction)

    def select(self, document: Document, split: Split) -> Document | None:
        name, text = document
        cut = int(len(text) * (1 - self.fraction))
        text = text[:cut] if split == "train" else text[cut:]
        return Document(name, text) if text else None


class SpanCorpus(Corpus):
    """A corpus that is read span by span, with a rule for what is held out.

    Subclasses implement `list_spans` and `read_all`.
    """

    holdout: Holdout

    @abstractmethod
    def read_all(self, span: Span) -> Items:
        """Yields the documents of that span, of both splits, and invalid entries."""

    def read_span(self, span: Span, split: Split) -> Items:
        for item in self.read_all(span):
            if isinstance(item, InvalidDocument):
                yield item
            elif selected := self.holdout.select(item, split):
                yield selected
