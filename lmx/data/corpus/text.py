"""Text files: one document per file, or one JSON object per line."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lmx.config.registry import ConfigError, configurable
from lmx.data.corpus.corpus import (
    EntryParser,
    FileCorpus,
    HoldoutDocuments,
    Items,
    Span,
    divide_range,
    read_stamp,
)
from lmx.data.optional import import_optional

MAX_DOCUMENT_BYTES = 2**30  # a document must fit in memory
READ_BYTES = 2**20  # at a time
ZSTD_SUFFIX = ".zst"
JSON_LINES_SUFFIXES = (".jsonl", ".jsonl.zst")
COMPRESSION_RATIO = 4  # bytes of text per compressed byte, approximately


@configurable
@dataclass(frozen=True, kw_only=True)
class Text(FileCorpus):
    """A text file, a folder of text files, or files of JSON objects, one per line.

    A file is one document; a line of a `.jsonl` or `.jsonl.zst` file is one document.
    Hidden files and folders are skipped. Moving the files does not change the corpus.
    """

    suffixes: tuple[str, ...] = (".txt", ".md", ".py")  # which files of a folder
    text_field: str = "text"  # of each JSON object

    single_name: ClassVar[str] = "text"

    def divide(self, path: Path, name: str, size: int) -> Iterator[Span]:
        length, stamp = path.stat().st_size, read_stamp(path)
        if not path.name.endswith(JSON_LINES_SUFFIXES):
            rule = self.holdout
            by_document = isinstance(rule, HoldoutDocuments) and rule.fraction
            if by_document and name == self.single_name:
                raise ConfigError(
                    f"{path} is one document, and one document cannot be split by"
                    " document: set Text.holdout = @HoldoutTail()"
                )
            yield Span(name, 0, 1, length, stamp)
        elif path.suffix == ZSTD_SUFFIX:
            yield Span(name, 0, 2**62, COMPRESSION_RATIO * length, stamp)
        else:
            yield from divide_range(name, length, length, size, stamp)

    def read_file(self, path: Path, span: Span) -> Items:
        is_json = path.name.endswith(JSON_LINES_SUFFIXES)
        parser = EntryParser(path, span.file, "byte", "Text", self.text_field, is_json)
        if is_json:
            yield from read_lines(parser, span)
        elif path.stat().st_size > MAX_DOCUMENT_BYTES:
            advice = "split it, or convert it to JSON objects, one per line."
            reason = f"a document of more than {MAX_DOCUMENT_BYTES} bytes"
            yield parser.reject(reason, 0, advice=advice)
        else:
            yield parser.parse(path.read_bytes(), name=span.file)


def read_lines(parser: EntryParser, span: Span) -> Items:
    """Yields the documents of the lines that start within the span, in order.

    Offsets in a compressed file count uncompressed bytes. Blank lines are skipped.
    """
    with open_binary(parser.path) as file:
        at = 0
        if span.begin:  # continue at the first line that starts at or after it
            file.seek(span.begin - 1)
            at = span.begin - 1 + _skip_line(file)
        while at < span.end and (line := file.readline(MAX_DOCUMENT_BYTES + 1)):
            size = len(line)
            if size > MAX_DOCUMENT_BYTES and not line.endswith(b"\n"):
                size += _skip_line(file)
                reason = f"a line of more than {MAX_DOCUMENT_BYTES} bytes"
                yield parser.reject(reason, at, advice="split it.")
            elif not line.isspace():
                yield parser.parse(line, at)
            at += size


@contextmanager
def open_binary(path: Path) -> Iterator[io.BufferedReader]:
    """Opens a file for reading; decompresses it if its name ends in `.zst`.

    Refuses damaged and truncated files, then or while reading.
    """
    if path.suffix != ZSTD_SUFFIX:
        with path.open("rb", READ_BYTES) as file:
            yield file
        return
    arrow = import_optional("pyarrow", "data", f"to read {path}")
    with arrow.OSFile(f"{path}") as source:
        raw = arrow.CompressedInputStream(source, "zstd")
        file = io.BufferedReader(raw, READ_BYTES)
        try:
            yield file
        except OSError as error:
            raise ConfigError(
                f"{path}: damaged or truncated ({error}) after byte {file.tell()} of"
                f" its content, before byte {source.tell()} of the file: replace it by"
                " an intact copy."
            ) from None


def _skip_line(file: io.BufferedReader) -> int:
    """Reads past the next newline. Returns the number of bytes read."""
    size = 0
    while line := file.readline(READ_BYTES):
        size += len(line)
        if line.endswith(b"\n"):
            break
    return size
