"""Text that lies on disk: files, folders of files, JSON objects by the line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmx.config.registry import ConfigError, Execution, configurable
from lmx.data.corpus.corpus import (
    Document,
    Holdout,
    HoldoutDocuments,
    InvalidDocument,
    Span,
    SpanCorpus,
)
from lmx.data.corpus.file_list import divide_file, list_files, read_stamp
from lmx.data.corpus.json_lines import (
    MAX_DOCUMENT_BYTES,
    ZSTD_SUFFIX,
    TextField,
    read_lines,
    try_decode_utf8,
)

SINGLE_NAME = "text"  # the name of a document that is all there is
JSON_LINES_SUFFIXES = (".jsonl", ".jsonl.zst")
COMPRESSION_RATIO = 4  # bytes of text for a byte of it compressed, roughly


@configurable
@dataclass(frozen=True, kw_only=True)
class Text(SpanCorpus):
    """Text that lies on disk: a file, a folder of files, or JSON objects by the line.

    A file is one document; a `.jsonl` or `.jsonl.zst` is one document a line. In a
    folder, hidden files and folders are passed over. Where it all lies changes nothing.
    """

    path: Execution[str]
    holdout: Holdout = HoldoutDocuments()
    suffixes: tuple[str, ...] = (".txt", ".md", ".py")  # which files of a folder
    text_field: str = "text"  # of each JSON object

    def list_spans(self, size: int) -> Sequence[Span]:
        found = []
        for path, name in list_files(self.path, self.suffixes, "Text", SINGLE_NAME):
            length, mark = path.stat().st_size, read_stamp(path)
            if not path.name.endswith(JSON_LINES_SUFFIXES):
                self._check_holdout(path, name)
                found.append(Span(name, 0, 1, length, mark))
            elif path.suffix == ZSTD_SUFFIX:
                found.append(Span(name, 0, 2**62, COMPRESSION_RATIO * length, mark))
            else:
                found += divide_file(name, length, length, size, mark)
        return found

    def read_all(self, span: Span) -> Iterator[Document | InvalidDocument]:
        root = Path(self.path).expanduser()
        path = root if root.is_file() else root / span.file
        if path.name.endswith(JSON_LINES_SUFFIXES):
            field = TextField(self.text_field, "Text")
            return read_lines(path, span.file, span.begin, span.end, field)
        return iter((_read_file(path, span.file),))

    def _check_holdout(self, path: Path, name: str) -> None:
        if (
            name == SINGLE_NAME
            and isinstance(self.holdout, HoldoutDocuments)
            and self.holdout.fraction
        ):
            raise ConfigError(
                f"{path} is one document, and one document cannot be split by"
                " document: set Text.holdout = @HoldoutTail()"
            )


def _read_file(path: Path, name: str) -> Document | InvalidDocument:
    """A file as one document."""
    if path.stat().st_size > MAX_DOCUMENT_BYTES:
        advice = "part it, or make it JSON objects by the line."
        reason = f"a document of more than {MAX_DOCUMENT_BYTES} bytes"
        return InvalidDocument("broken", reason, path, "byte 0", advice)
    text = try_decode_utf8(path.read_bytes(), path)
    if isinstance(text, InvalidDocument):
        return text
    if not text:
        return InvalidDocument("empty", "empty file", path, "byte 0")
    return Document(name, text)
