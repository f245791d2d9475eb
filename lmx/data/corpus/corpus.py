"""Corpora: documents in a fixed order, divided into a train and a validation split."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

from lmx.config.registry import (
    ConfigError,
    Execution,
    Rate,
    configurable,
    require,
    suggest,
)

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPAN_BYTES = 64 * 2**20  # of a span, where only the order of documents matters
NOT_UTF8_ADVICE = "save it as UTF-8 or leave it out."


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
        require(
            document,
            f"the {split} split of {self} is empty: add documents, or hold out a"
            f" {'larger' if split == 'validation' else 'smaller'} fraction.",
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


class Holdout(ABC):
    """Selects which part of a corpus is for validation."""

    @abstractmethod
    def select(self, document: Document, split: Split) -> Document | None:
        """Returns the part of the document that belongs to the split, if any."""


@configurable
@dataclass(frozen=True, kw_only=True)
class HoldoutDocuments(Holdout):
    """Holds out documents by a hash of their names, independent of other documents."""

    fraction: Rate[float] = 0.04

    def select(self, document: Document, split: Split) -> Document | None:
        held_out = is_selected(document.name, self.fraction)
        return document if held_out == (split == "validation") else None


@configurable
@dataclass(frozen=True, kw_only=True)
class HoldoutTail(Holdout):
    """Holds out the last characters of each document, as nanoGPT does with one text."""

    fraction: Rate[float] = 0.1

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


@dataclass(frozen=True, kw_only=True)
class FileCorpus(SpanCorpus):
    """Documents of one file, or of the files of a folder in the order of their paths.

    Symbolic links are followed. Hidden files and folders are skipped. The case of
    suffixes has no effect. Moving the files does not change the corpus.
    """

    path: Execution[str]
    holdout: Holdout = HoldoutDocuments()
    suffixes: tuple[str, ...]  # which files of a folder are read

    single_name: ClassVar[str]  # of a file that is the whole corpus

    @abstractmethod
    def divide(self, path: Path, name: str, size: int) -> Iterator[Span]:
        """Divides a file into spans of about `size` bytes."""

    @abstractmethod
    def read_file(self, path: Path, span: Span) -> Items:
        """Yields the documents of a span of that file, and invalid entries."""

    def list_spans(self, size: int) -> Sequence[Span]:
        return [s for file in self._list_files() for s in self.divide(*file, size)]

    def read_all(self, span: Span) -> Items:
        root = Path(self.path).expanduser()
        return self.read_file(root if root.is_file() else root / span.file, span)

    def _list_files(self) -> Sequence[tuple[Path, str]]:
        root = Path(self.path).expanduser()
        if root.is_file():
            return [(root, self.single_name)]
        if not root.exists():
            folder = root.parent
            names = [path.name for path in folder.iterdir()] if folder.is_dir() else ()
            raise ConfigError(f"there is no {root}{suggest(root.name, names)}")
        suffixes = tuple(suffix.lower() for suffix in self.suffixes)
        files = [
            (path, path.relative_to(root).as_posix())
            for path in walk(root)
            if path.name.lower().endswith(suffixes)
        ]
        for path, _ in files:
            require(path.exists(), f"{path} is a link to nothing: repair or remove it.")
        require(
            files,
            f"no file of {root} ends in {' or '.join(self.suffixes)}: set"
            f" {type(self).__name__}.suffixes to the suffixes of its files.",
        )
        return files


def walk(folder: Path) -> Iterator[Path]:
    """All that is not a folder below a folder, in order; links are followed.

    Hidden files and folders are skipped.
    """
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
            continue
        above = [folder.resolve(), *folder.resolve().parents]
        require(
            path.resolve() not in above,
            f"{path} is a link to a folder that contains it: remove it.",
        )
        yield from walk(path)


def divide_range(
    name: str, count: int, bytes: int, size: int, stamp: str
) -> Iterator[Span]:
    """Divides `count` units with `bytes` in all into spans of about `size` bytes."""
    spans = max(1, min(count, round(bytes / size)))
    for index in range(spans):
        begin, end = (count * n // spans for n in (index, index + 1))
        yield Span(name, begin, end, bytes // spans, stamp)


def read_stamp(path: Path) -> str:
    """Returns the size and time of change of a file."""
    status = path.stat()
    return f"{status.st_size} bytes of {status.st_mtime_ns}"


class EntryParser(NamedTuple):
    """Parses the entries of one file."""

    path: Path
    file: str  # its name within the corpus
    unit: str  # of the numbers of entries: byte, row or record
    owner: str  # the class with the parameter `text_field`
    field: str = "text"  # of each JSON object; or a name of the text for messages
    is_json: bool = False

    def parse(
        self, raw: Any, number: int = 0, name: str | None = None
    ) -> Document | InvalidDocument:
        """Returns the document of an entry; named by its file and number by default."""
        try:
            text = raw.decode() if isinstance(raw, bytes) else raw
            if self.is_json:
                item = json.loads(text)
                if not isinstance(item, dict):
                    return self.reject("not a JSON object, {...}", number)
                if self.field not in item:
                    fields = ", ".join(map(repr, item)) or "none"
                    advice = f"the fields are {fields}: set {self.owner}.text_field"
                    reason = f"no field {self.field!r}"
                    return self.reject(reason, number, advice=advice)
                text = item[self.field]
            if not isinstance(text, str):
                reason = f"{type(text).__name__} instead of text in {self.field!r}"
                return self.reject(reason, number)
            text.encode()
        except UnicodeDecodeError as error:
            reason = f"not UTF-8 (0x{raw[error.start]:02x})"
            return self.reject(reason, number, error.start, NOT_UTF8_ADVICE)
        except UnicodeEncodeError:
            return self.reject(f"an unpaired surrogate in {self.field!r}", number)
        except json.JSONDecodeError as error:
            at = len(error.doc[: error.pos].encode())
            return self.reject(f"not JSON ({error.msg})", number, at)
        except (ValueError, RecursionError) as error:  # too many digits, or too nested
            return self.reject(f"not JSON ({type(error).__name__})", number)
        if not text:
            return self.reject("empty text", number)._replace(kind="empty")
        return Document(name or f"{self.file}@{number}", text)

    def reject(
        self,
        reason: str,
        number: int,
        byte: int | None = None,
        advice: str = "repair it or leave it out.",
    ) -> InvalidDocument:
        """Returns why an entry is invalid, and where: at that byte of it, if given."""
        location = f"{self.unit} {number}"
        if byte is not None:
            within = f"{location}, byte {byte}"
            location = f"byte {number + byte}" if self.unit == "byte" else within
        return InvalidDocument("invalid", reason, self.path, location, advice)

    def check_column(self, names: Sequence[str]) -> None:
        require(
            self.field in names,
            f"{self.path}: no column {self.field!r}, the columns are"
            f" {', '.join(map(repr, names)) or 'none'}: set {self.owner}.text_field",
        )


def decode_utf8(raw: bytes, path: Path) -> str:
    """Returns the text of a file, newlines unchanged. Refuses what is not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 (0x{raw[error.start]:02x})"
        location = f"byte {error.start}"
        entry = InvalidDocument("invalid", reason, path, location, NOT_UTF8_ADVICE)
        raise entry.to_error() from None
