"""Texts to learn from, and which of them are held out."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from lmx.config.names import ConfigError, configurable

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Document(NamedTuple):
    """One text, never empty, and a name that is its own within the corpus."""

    name: str
    text: str


class Fault(NamedTuple):
    """What stands where a document should, and cannot be one."""

    kind: Literal["broken", "empty"]
    reason: str  # in few words, the same for all that are alike
    path: Path  # of the file
    place: str  # in the file, as "byte 24"
    advice: str = "repair it or leave it out."

    def refusal(self) -> ConfigError:
        """The fault as an error."""
        return ConfigError(f"{self.path}: {self.reason} at {self.place}: {self.advice}")


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

    def spans(self, size: int) -> Sequence[Span]:
        """The corpus in parts of about `size` bytes, where it can be parted."""
        return (Span("", 0, 1, 0, ""),)

    def within(self, span: Span, split: Split) -> Iterator[Document | Fault]:
        """What `read` gives of that part, and what it refuses or passes over."""
        return self.read(split)

    def documents(self, split: Split) -> Iterator[Document]:
        """The documents of the split; a refusal if there are none."""
        document = None
        for document in self.read(split):
            yield document
        if document is None:
            raise self.nothing(split)

    def nothing(self, split: Split) -> ConfigError:
        """Says that a split is empty, and what to do."""
        return ConfigError(
            f"the {split} split of {self} is empty: give more documents, or hold"
            f" out a {'larger' if split == 'validation' else 'smaller'} fraction."
        )

    def digest(self) -> str:
        """SHA-256 over the split, name and text of every document."""
        sha = hashlib.sha256()
        for split in SPLITS:
            for name, text in self.read(split):
                for part in (split, name, text):
                    data = part.encode("utf-8", "surrogateescape")
                    sha.update(b"%d:" % len(data))
                    sha.update(data)
        return sha.hexdigest()


def chosen(name: str, fraction: float) -> bool:
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
    def part(self, document: Document, split: Split) -> Document | None:
        """What of the document belongs to the split: all, some of its text, nothing."""


@configurable
@dataclass(frozen=True, kw_only=True)
class ByDocument(Holdout):
    """Whole documents, chosen by a hash of their names: no other document matters."""

    fraction: float = 0.04

    def __post_init__(self):
        check_fraction("ByDocument.fraction", self.fraction)

    def part(self, document: Document, split: Split) -> Document | None:
        held = chosen(document.name, self.fraction)
        return document if held == (split == "validation") else None


@configurable
@dataclass(frozen=True, kw_only=True)
class Tail(Holdout):
    """The last characters of each document, as nanoGPT cuts its one."""

    fraction: float = 0.1

    def __post_init__(self):
        check_fraction("Tail.fraction", self.fraction)

    def part(self, document: Document, split: Split) -> Document | None:
        name, text = document
        cut = int(len(text) * (1 - self.fraction))
        text = text[:cut] if split == "train" else text[cut:]
        return Document(name, text) if text else None


class Parted(Corpus):
    """A corpus that is read part by part, and a rule of which documents are held out.

    A subclass gives `spans`, and `every` document of one.
    """

    split: Holdout

    @abstractmethod
    def every(self, span: Span) -> Iterator[Document | Fault]:
        """The documents of that part, of both splits, and what is none."""

    def within(self, span: Span, split: Split) -> Iterator[Document | Fault]:
        for item in self.every(span):
            kept = item if isinstance(item, Fault) else self.split.part(item, split)
            if kept is not None:
                yield kept

    def read(self, split: Split) -> Iterator[Document]:
        for span in self.spans(SPAN):
            for item in self.within(span, split):
                if isinstance(item, Document):
                    yield item
                elif item.kind == "broken":
                    raise item.refusal()


SPAN = 64 * 2**20  # bytes of a part, where only the order matters
