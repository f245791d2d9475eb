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

from lmx.core.files import open_atomic, write_atomic
from lmx.data.corpus.corpus import Corpus, Document, InvalidDocument, Span, Split
from lmx.data.curate.filter import Filter
from lmx.data.store.checksum import FileChecksum
from lmx.data.store.store import format_shard_name
from lmx.data.tokenizer.base import Tokenizer
from lmx.data.tokenizer.external import FileCodec

WORK_DIR = ".building"  # the folder, in that of the store, of what is not finished
MAX_LOCATIONS = 5  # places of documents that were set aside are kept, of each reason
ENCODE_CHARS = 2**20  # characters that are encoded at a time
REPORT_SECONDS = 0.5  # seconds from one word of how far it has come to the next
BUFFER_TOKENS = 2**20  # tokens


class ShardSpec(NamedTuple):
    """What one shard is made of: parts of one source, in order."""

    number: int  # of the shard
    source: str
    spans: tuple[Span, ...]

    @property
    def bytes(self) -> int:
        """Of text, roughly."""
        return sum(span.bytes for span in self.spans)


class ShardProgress(NamedTuple):
    """How far a piece has come."""

    shard: int
    documents: int
    bytes: int
    tokens: int
    done: bool


@dataclass(frozen=True, kw_only=True)
class BuildJob:
    """What is the same for all shards of a store. It is sent to every process."""

    folder: Path
    sources: Mapping[str, Corpus]
    codec: Tokenizer
    split: Split = "train"
    filters: tuple[Filter, ...] = ()
    max_invalid_fraction: float = (
        0.0  # of the documents, that may be: one is refused at once at 0
    )

    @property
    def work_dir(self) -> Path:
        """The folder of what is not finished."""
        return self.folder / WORK_DIR

    @property
    def dtype(self) -> str:
        """The dtype of the tokens on disk."""
        return "<u2" if self.codec.vocab <= 2**16 else "<u4"


@dataclass(kw_only=True)
class DocumentCounts:
    """What became of the documents of a piece."""

    documents: int = 0
    bytes: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, dict[str, Any]] = field(default_factory=dict)

    def drop(self, reason: str) -> None:
        """Counts a document that a filter left out."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def reject(self, fault: InvalidDocument, file: str) -> None:
        """Counts a document that is none, and keeps its place if it is among the first.

        What differs from one to the next, in brackets, is no part of the reason.
        """
        reason = re.sub(r" \(.*\)", "", fault.reason)
        new = {"kind": fault.kind, "count": 0, "first": []}
        known = self.rejected.setdefault(reason, new)
        known["count"] += 1
        if len(known["first"]) < MAX_LOCATIONS:
            known["first"].append(f"{file}: {fault.location}")


def write_shard(
    job: BuildJob, piece: ShardSpec, hear: Callable[[ShardProgress], None]
) -> None:
    """Writes the shard of a piece: tokens, lengths of documents, and its record.

    Each file has its name only when it is whole, and the record is the last of them.
    """
    count, lengths, said = DocumentCounts(), array.array("q"), time.monotonic()
    with open_atomic(job.folder / format_shard_name(piece.number)) as file:
        tokens = _TokenWriter(file, job.dtype)
        for document in _read_documents(job, piece, count):
            lengths.append(tokens.add(encode_document(job.codec, document.text)))
            count.documents += 1
            count.bytes += len(document.text.encode())
            if time.monotonic() - said > REPORT_SECONDS:
                said = time.monotonic()
                hear(_make_progress(piece, count, tokens, done=False))
        digest = tokens.close()
    with open_atomic(get_lengths_path(job, piece.number)) as file:
        file.write(np.array(lengths, "<i8").data)
    record = {
        "source": piece.source,
        "documents": count.documents,
        "tokens": tokens.size,
        "bytes": count.bytes,
        "dropped": dict(sorted(count.dropped.items())),
        "aside": dict(sorted(count.rejected.items())),
        "digest": digest,
        "spans": [span[:-1] for span in piece.spans],
    }
    write_atomic(get_record_path(job, piece.number), json.dumps(record).encode())
    hear(_make_progress(piece, count, tokens, done=True))


def get_lengths_path(job: BuildJob, number: int) -> Path:
    """Where the lengths of a shard's documents wait for the others'."""
    return job.work_dir / f"{number:05}.lengths"


def get_record_path(job: BuildJob, number: int) -> Path:
    """Where the record of a shard waits for the others'."""
    return job.work_dir / f"{number:05}.json"


def encode_document(codec: Tokenizer, text: str) -> Iterator[np.ndarray]:
    """The tokens of a document between begin and end, where the tokenizer has them."""
    if codec.bos is not None:
        yield np.array([codec.bos])
    for part in _split_text(codec, text):
        yield codec.encode(part)
    if codec.eos is not None:
        yield np.array([codec.eos])


def _split_text(codec: Tokenizer, text: str) -> Iterator[str]:
    """A text in parts that can be encoded one after the other.

    Longer texts take a tokenizer more time and memory for each character. A tokenizer
    that puts a space before what it encodes gets all at once.
    """
    whole = isinstance(codec, FileCodec) and codec.strip_leading_space
    begin = 0
    while len(text) - begin > ENCODE_CHARS and not whole:
        end = begin + ENCODE_CHARS
        found = max(text.rfind("\n", begin, end), begin) or text.rfind(" ", begin, end)
        end = found + 1 if found > begin else end
        yield text[begin:end]
        begin = end
    yield text[begin:] if begin else text


def _read_documents(
    job: BuildJob, piece: ShardSpec, count: DocumentCounts
) -> Iterator[Document]:
    """The documents of a piece that are kept, the others being counted."""
    corpus = job.sources[piece.source]
    for span in piece.spans:
        for item in corpus.read_span(span, job.split):
            if isinstance(item, InvalidDocument):
                if item.kind == "broken" and not job.max_invalid_fraction:
                    raise item.to_error()
                count.reject(item, span.file)
            elif isinstance(kept := _apply_filters(job.filters, item), Document):
                yield kept
            else:
                count.drop(kept)


def _apply_filters(filters: tuple[Filter, ...], document: Document) -> Document | str:
    """What the filters leave of a document, or why the first of them refuses it."""
    for rule in filters:
        found = rule(document)
        if isinstance(found, str):
            return found
        document = found
    return document if document.text else "no text was left"


def _make_progress(
    piece: ShardSpec, count: DocumentCounts, tokens: "_TokenWriter", *, done: bool
) -> ShardProgress:
    return ShardProgress(piece.number, count.documents, count.bytes, tokens.size, done)


class _TokenWriter:
    """Tokens on their way to a file, and the digest of what went."""

    def __init__(self, file: BinaryIO, kind: str):
        self.size = 0
        self._file, self._kind, self._digest = file, kind, FileChecksum()
        self._waiting: list[np.ndarray] = []
        self._held = 0

    def add(self, parts: Iterable[np.ndarray]) -> int:
        """Takes the tokens of a document. Returns how many they are."""
        before = self.size
        for part in parts:
            self._waiting.append(part.astype(self._kind))
            self.size += len(part)
            self._held += len(part)
        if self._held >= BUFFER_TOKENS:
            self._flush()
        return self.size - before

    def close(self) -> dict[str, Any]:
        """Writes what is left. Returns the digest of all."""
        self._flush()
        return self._digest.to_json()

    def _flush(self) -> None:
        if self._waiting:
            data = np.concatenate(self._waiting).view(np.uint8).data
            self._file.write(data)
            self._digest.update(data)
            self._waiting, self._held = [], 0
