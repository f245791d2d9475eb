"""Corpora in a file or a folder of files, and the parsing of their entries."""

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from lmx.config.registry import ConfigError, Execution, suggest
from lmx.data.corpus.corpus import (
    Document,
    Holdout,
    HoldoutDocuments,
    InvalidDocument,
    Items,
    Span,
    SpanCorpus,
)

NOT_UTF8_ADVICE = "save it as UTF-8 or leave it out."


@dataclass(frozen=True, kw_only=True)
class FileCorpus(SpanCorpus):
    """Documents of one file, or of the files of a folder in the order of their paths.

    Hidden files and folders are skipped. Moving the files does not change the corpus.
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
        return [
            span for file in self._list_files() for span in self.divide(*file, size)
        ]

    def read_all(self, span: Span) -> Items:
        root = Path(self.path).expanduser()
        return self.read_file(root if root.is_file() else root / span.file, span)

    def _list_files(self) -> Iterator[tuple[Path, str]]:
        """Yields each file and its name within the corpus, in order."""
        root, found = Path(self.path).expanduser(), False
        if not root.exists():
            folder = root.parent
            names = [path.name for path in folder.iterdir()] if folder.is_dir() else ()
            raise ConfigError(f"there is no {root}{suggest(root.name, names)}")
        if root.is_file():
            yield root, self.single_name
            return
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root)
            hidden = any(part.startswith(".") for part in name.parts)
            if path.name.endswith(self.suffixes) and path.is_file() and not hidden:
                found = True
                yield path, name.as_posix()
        if not found:
            raise ConfigError(
                f"no file of {root} ends in {' or '.join(self.suffixes)}: set"
                f" {type(self).__name__}.suffixes to the suffixes of its files."
            )


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
                    return self.reject("no JSON object, {...}", number)
                if self.field not in item:
                    fields = ", ".join(map(repr, item)) or "none"
                    advice = f"the fields are {fields}: set {self.owner}.text_field"
                    reason = f"no field {self.field!r}"
                    return self.reject(reason, number, advice=advice)
                text = item[self.field]
            if not isinstance(text, str):
                reason = f"no text but {type(text).__name__} in {self.field!r}"
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
        if byte is not None and self.unit == "byte":
            location = f"byte {number + byte}"
        elif byte is not None:
            location += f", byte {byte}"
        return InvalidDocument("invalid", reason, self.path, location, advice)

    def check_column(self, names: Sequence[str]) -> None:
        """Refuses a table without a column of the text."""
        if self.field not in names:
            raise ConfigError(
                f"{self.path}: no column {self.field!r}, the columns are"
                f" {', '.join(map(repr, names)) or 'none'}: set {self.owner}.text_field"
            )


def decode_utf8(raw: bytes, path: Path) -> str:
    """Returns the text of a file, newlines unchanged. Refuses what is not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 (0x{raw[error.start]:02x})"
        parser = EntryParser(path, "", "byte", "")
        raise parser.reject(
            reason, 0, error.start, NOT_UTF8_ADVICE
        ).to_error() from None
