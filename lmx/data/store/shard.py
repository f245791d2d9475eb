"""One shard of a store: a function of what is built and of its piece of the input."""

import array
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from lmx.data.cache import fresh, write_whole
from lmx.data.corpora.corpus import Corpus, Document, Fault, Span, Split
from lmx.data.store.digest import Digest
from lmx.data.store.filter import Filter
from lmx.data.store.store import tokens_name
from lmx.data.tokenizers.codec import Codec
from lmx.data.tokenizers.file import FileCodec

WORK = ".building"  # the folder, in that of the store, of what is not finished
FIRST = 5  # places of documents that were set aside are kept, of each reason
STRETCH = 2**20  # characters that are encoded at a time
HEARD = 0.5  # seconds from one word of how far it has come to the next
BUFFER = 2**20  # tokens


class Piece(NamedTuple):
    """What one shard is made of: parts of one source, in order."""

    number: int  # of the shard
    source: str
    spans: tuple[Span, ...]

    @property
    def bytes(self) -> int:
        """Of text, roughly."""
        return sum(span.bytes for span in self.spans)


class Heard(NamedTuple):
    """How far a piece has come."""

    piece: int
    documents: int
    bytes: int
    tokens: int
    done: bool


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is the same for all shards of a store. It is sent to every process."""

    folder: Path
    sources: Mapping[str, Corpus]
    codec: Codec
    split: Split = "train"
    filters: tuple[Filter, ...] = ()
    broken: float = 0.0  # of the documents, that may be: one is refused at once at 0

    @property
    def work(self) -> Path:
        """The folder of what is not finished."""
        return self.folder / WORK

    @property
    def kind(self) -> str:
        """The dtype of the tokens on disk."""
        return "<u2" if self.codec.vocab <= 2**16 else "<u4"


@dataclass(kw_only=True)
class Count:
    """What became of the documents of a piece."""

    documents: int = 0
    bytes: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    aside: dict[str, dict[str, Any]] = field(default_factory=dict)

    def drop(self, reason: str) -> None:
        """Counts a document that a filter left out."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def set_aside(self, fault: Fault, file: str) -> None:
        """Counts a document that is none, and keeps its place if it is among the first.

        What differs from one to the next, in brackets, is no part of the reason.
        """
        reason = re.sub(r" \(.*\)", "", fault.reason)
        new = {"kind": fault.kind, "count": 0, "first": []}
        known = self.aside.setdefault(reason, new)
        known["count"] += 1
        if len(known["first"]) < FIRST:
            known["first"].append(f"{file}: {fault.place}")


def write(job: Job, piece: Piece, hear: Callable[[Heard], None]) -> None:
    """Writes the shard of a piece: tokens, lengths of documents, and its record.

    Each file has its name only when it is whole, and the record is the last of them.
    """
    count, lengths, said = Count(), array.array("q"), time.monotonic()
    with fresh(job.folder / tokens_name(piece.number)) as file:
        tokens = _Tokens(file, job.kind)
        for document in _documents(job, piece, count):
            lengths.append(tokens.add(encoded(job.codec, document.text)))
            count.documents += 1
            count.bytes += len(document.text.encode())
            if time.monotonic() - said > HEARD:
                said = time.monotonic()
                hear(_heard(piece, count, tokens, done=False))
        digest = tokens.end()
    with fresh(lengths_path(job, piece.number)) as file:
        file.write(np.array(lengths, "<i8").data)
    record = {
        "source": piece.source,
        "documents": count.documents,
        "tokens": tokens.size,
        "bytes": count.bytes,
        "dropped": dict(sorted(count.dropped.items())),
        "aside": dict(sorted(count.aside.items())),
        "digest": digest,
        "spans": [span[:-1] for span in piece.spans],
    }
    write_whole(record_path(job, piece.number), json.dumps(record).encode())
    hear(_heard(piece, count, tokens, done=True))


def lengths_path(job: Job, number: int) -> Path:
    """Where the lengths of a shard's documents wait for the others'."""
    return job.work / f"{number:05}.lengths"


def record_path(job: Job, number: int) -> Path:
    """Where the record of a shard waits for the others'."""
    return job.work / f"{number:05}.json"


def encoded(codec: Codec, text: str) -> Iterator[np.ndarray]:
    """The tokens of a document between begin and end, where the tokenizer has them."""
    if codec.begin is not None:
        yield np.array([codec.begin])
    for part in _stretches(codec, text):
        yield codec.encode(part)
    if codec.end is not None:
        yield np.array([codec.end])


def _stretches(codec: Codec, text: str) -> Iterator[str]:
    """A text in parts that can be encoded one after the other.

    Longer texts take a tokenizer more time and memory for each character. A tokenizer
    that puts a space before what it encodes gets all at once.
    """
    whole = isinstance(codec, FileCodec) and codec.strips
    begin = 0
    while len(text) - begin > STRETCH and not whole:
        end = begin + STRETCH
        found = max(text.rfind("\n", begin, end), begin) or text.rfind(" ", begin, end)
        end = found + 1 if found > begin else end
        yield text[begin:end]
        begin = end
    yield text[begin:] if begin else text


def _documents(job: Job, piece: Piece, count: Count) -> Iterator[Document]:
    """The documents of a piece that are kept, the others being counted."""
    corpus = job.sources[piece.source]
    for span in piece.spans:
        for item in corpus.within(span, job.split):
            if isinstance(item, Fault):
                if item.kind == "broken" and not job.broken:
                    raise item.refusal()
                count.set_aside(item, span.file)
            elif isinstance(kept := _kept(job.filters, item), Document):
                yield kept
            else:
                count.drop(kept)


def _kept(filters: tuple[Filter, ...], document: Document) -> Document | str:
    """What the filters leave of a document, or why the first of them refuses it."""
    for rule in filters:
        found = rule(document)
        if isinstance(found, str):
            return found
        document = found
    return document if document.text else "no text was left"


def _heard(piece: Piece, count: Count, tokens: "_Tokens", *, done: bool) -> Heard:
    return Heard(piece.number, count.documents, count.bytes, tokens.size, done)


class _Tokens:
    """Tokens on their way to a file, and the digest of what went."""

    def __init__(self, file: BinaryIO, kind: str):
        self.size = 0
        self._file, self._kind, self._digest = file, kind, Digest()
        self._waiting: list[np.ndarray] = []
        self._held = 0

    def add(self, parts: Iterable[np.ndarray]) -> int:
        """Takes the tokens of a document. Returns how many they are."""
        before = self.size
        for part in parts:
            self._waiting.append(part.astype(self._kind))
            self.size += len(part)
            self._held += len(part)
        if self._held >= BUFFER:
            self._flush()
        return self.size - before

    def end(self) -> dict[str, Any]:
        """Writes what is left. Returns the digest of all."""
        self._flush()
        return self._digest.told()

    def _flush(self) -> None:
        if self._waiting:
            data = np.concatenate(self._waiting).view(np.uint8).data
            self._file.write(data)
            self._digest.update(data)
            self._waiting, self._held = [], 0
