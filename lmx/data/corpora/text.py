"""Text that lies on disk: files, folders of files, JSON objects by the line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmx.config.names import ConfigError, Execution, configurable
from lmx.data.corpora.corpus import (
    ByDocument,
    Document,
    Fault,
    Holdout,
    Parted,
    Span,
)
from lmx.data.corpora.files import listed, parts, stamp
from lmx.data.corpora.lines import LONGEST, SQUEEZED, Field, read_lines, utf8

ONE = "text"  # the name of a document that is all there is
LINES = (".jsonl", ".jsonl.zst")
RATIO = 4  # bytes of text for a byte of it compressed, roughly


@configurable
@dataclass(frozen=True, kw_only=True)
class Text(Parted):
    """Text that lies on disk: a file, a folder of files, or JSON objects by the line.

    A file is one document; a `.jsonl` or `.jsonl.zst` is one document a line. In a
    folder, hidden files and folders are passed over. Where it all lies changes nothing.
    """

    path: Execution[str]
    split: Holdout = ByDocument()
    suffixes: tuple[str, ...] = (".txt", ".md", ".py")  # which files of a folder
    text_field: str = "text"  # of each JSON object

    def spans(self, size: int) -> Sequence[Span]:
        found = []
        for path, name in listed(self.path, self.suffixes, "Text", ONE):
            length, mark = path.stat().st_size, stamp(path)
            if not path.name.endswith(LINES):
                self._check(path, name)
                found.append(Span(name, 0, 1, length, mark))
            elif path.suffix == SQUEEZED:
                found.append(Span(name, 0, 2**62, RATIO * length, mark))
            else:
                found += parts(name, length, length, size, mark)
        return found

    def every(self, span: Span) -> Iterator[Document | Fault]:
        root = Path(self.path).expanduser()
        path = root if root.is_file() else root / span.file
        if path.name.endswith(LINES):
            field = Field(self.text_field, "Text")
            return read_lines(path, span.file, span.begin, span.end, field)
        return iter((_whole(path, span.file),))

    def _check(self, path: Path, name: str) -> None:
        if name == ONE and isinstance(self.split, ByDocument) and self.split.fraction:
            raise ConfigError(
                f"{path} is one document, and one document cannot be split by"
                " document: set Text.split = @Tail()"
            )


def _whole(path: Path, name: str) -> Document | Fault:
    """A file as one document."""
    if path.stat().st_size > LONGEST:
        advice = "part it, or make it JSON objects by the line."
        reason = f"a document of more than {LONGEST} bytes"
        return Fault("broken", reason, path, "byte 0", advice)
    text = utf8(path.read_bytes(), path)
    if isinstance(text, Fault):
        return text
    if not text:
        return Fault("empty", "empty file", path, "byte 0")
    return Document(name, text)
