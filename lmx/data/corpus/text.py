"""Corpora of text files, JSON lines and the Python standard library."""

import ast
import io
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lmx.config.registry import ConfigError, Rate, configurable, require
from lmx.data.corpus.corpus import (
    Corpus,
    Document,
    EntryParser,
    FileCorpus,
    HoldoutDocuments,
    Items,
    Span,
    Split,
    divide_range,
    is_selected,
    read_stamp,
)
from lmx.data.optional import import_optional

MAX_DOCUMENT_BYTES = 2**30  # a document must fit in memory
READ_BYTES = 2**20  # at a time
ZSTD_SUFFIX = ".zst"
UNREADABLE_SUFFIXES = (".gz", ".bz2", ".xz", ".lz4", ".zip", ".tar")
COMPRESSION_RATIO = 4  # bytes of text per compressed byte, approximately
TOPICS = "pydoc_data/topics.py"
EXCLUDED_DIRS = frozenset({
    "site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test",
    "encodings",  # generated tables, so similar that the splits would overlap
})  # fmt: skip
MACHINE_SPECIFIC = ("config-", "_sysconfigdata_", "sitecustomize.py", TOPICS)


@configurable
@dataclass(frozen=True, kw_only=True)
class Text(FileCorpus):
    """A text file, a folder of text files, or files of JSON objects, one per line.

    A file is one document; a line of a `.jsonl` or `.ndjson` file, or of one with
    `.zst` added, is one document. A `.json` file is refused. Hidden files and folders
    are skipped. Moving the files does not change the corpus.
    """

    suffixes: tuple[str, ...] = (".txt", ".md", ".py")  # which files of a folder
    text_field: str = "text"  # of each JSON object

    single_name: ClassVar[str] = "text"

    def divide(self, path: Path, name: str, size: int) -> Iterator[Span]:
        length, stamp = path.stat().st_size, read_stamp(path)
        if not is_json_lines(path):
            rule = self.holdout
            by_document = isinstance(rule, HoldoutDocuments) and rule.fraction
            require(
                not by_document or name != self.single_name,
                f"{path} is one document, and one document cannot be split by"
                " document: set Text.holdout = @HoldoutTail()",
            )
            yield Span(name, 0, 1, length, stamp)
        elif path.suffix.lower() == ZSTD_SUFFIX:
            yield Span(name, 0, 2**62, COMPRESSION_RATIO * length, stamp)
        else:
            yield from divide_range(name, length, length, size, stamp)

    def read_file(self, path: Path, span: Span) -> Items:
        is_json = is_json_lines(path)
        parser = EntryParser(path, span.file, "byte", "Text", self.text_field, is_json)
        if is_json:
            yield from read_lines(parser, span)
        elif path.stat().st_size > MAX_DOCUMENT_BYTES:
            advice = "split it, or convert it to JSON objects, one per line."
            reason = f"a document of more than {MAX_DOCUMENT_BYTES} bytes"
            yield parser.reject(reason, 0, advice=advice)
        else:
            yield parser.parse(path.read_bytes(), name=span.file)


def is_json_lines(path: Path) -> bool:
    """Whether each line is a JSON object, by the name of a file. Refuses `.json`."""
    name = path.name.lower().removesuffix(ZSTD_SUFFIX)
    require(
        not name.endswith(UNREADABLE_SUFFIXES),
        f"{path} is compressed in a format that lmx does not read: decompress it, or"
        f" compress its JSON lines by Zstandard ({ZSTD_SUFFIX}).",
    )
    require(
        not name.endswith(".json"),
        f"{path} may hold one JSON value or one a line: convert it to one object per"
        " line, and name it .jsonl; or name it .txt to read it as plain text.",
    )
    return name.endswith((".jsonl", ".ndjson"))


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


def open_binary(path: Path) -> io.BufferedReader:
    """Opens a file for reading; decompresses it if its name ends in `.zst`."""
    raw = _ZstdReader(path) if path.suffix.lower() == ZSTD_SUFFIX else io.FileIO(path)
    return io.BufferedReader(raw, READ_BYTES)


class _ZstdReader(io.RawIOBase):
    """Decompresses Zstandard frames. Refuses damaged and truncated files."""

    def __init__(self, path: Path):
        arrow = import_optional("pyarrow", "data", f"to read {path}")
        self._path, self._file, self._position = path, arrow.OSFile(str(path)), 0
        self._stream = arrow.CompressedInputStream(self._file, "zstd")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        try:
            size = self._stream.readinto(buffer)
        except OSError as error:
            raise ConfigError(
                f"{self._path}: damaged or truncated ({error}) after byte"
                f" {self._position} of its content, before byte {self._file.tell()} of"
                " the file: replace it with an intact copy."
            ) from None
        self._position += size
        return size


def _skip_line(file: io.BufferedReader) -> int:
    """Reads past the next newline. Returns the number of bytes read."""
    size = 0
    while line := file.readline(READ_BYTES):
        size += len(line)
        if line.endswith(b"\n"):
            break
    return size


@configurable
@dataclass(frozen=True, kw_only=True)
class Stdlib(Corpus):
    """The sources of the running Python's standard library, and its language reference.

    A module is one document and belongs to one split, by a hash of its name. The topics
    of the reference repeat one another and are all for training. Tests, code pages,
    installed packages, descriptions of this machine, and files that are not UTF-8 are
    excluded.
    """

    holdout_fraction: Rate[float] = 0.04  # of the modules, for validation

    def list_spans(self, size: int) -> Sequence[Span]:
        root = _find_root()
        topics = [TOPICS] if (root / TOPICS).is_file() else []
        return [
            Span(name, 0, 1, (root / name).stat().st_size, read_stamp(root / name))
            for name in (*_list_modules(root), *topics)
        ]

    def read_span(self, span: Span, split: Split) -> Iterator[Document]:
        path = _find_root() / span.file
        if span.file == TOPICS:
            return _read_topics(path) if split == "train" else iter(())
        held_out = is_selected(span.file, self.holdout_fraction)
        wanted = held_out == (split == "validation")
        return _read_module(path, span.file) if wanted else iter(())


def _find_root() -> Path:
    root = Path(sysconfig.get_path("stdlib"))
    require(
        (root / "os.py").is_file(),
        f"this Python has no sources in {root}: use another corpus, such as @Text().",
    )
    return root


def _list_modules(root: Path) -> list[str]:
    """Returns the modules that every machine with this Python has, in order."""
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in EXCLUDED_DIRS]
        inner = Path(folder).relative_to(root)
        names += [(inner / name).as_posix() for name in files if name.endswith(".py")]
    return sorted(name for name in names if not name.startswith(MACHINE_SPECIFIC))


def _read_module(path: Path, name: str) -> Iterator[Document]:
    """Yields the module, unless it is empty or not UTF-8."""
    try:
        text = path.read_bytes().decode()
    except (UnicodeDecodeError, OSError):
        return
    if text:
        yield Document(name, text)


def _read_topics(path: Path) -> Iterator[Document]:
    """Yields the chapters of the language reference, from the table of pydoc."""
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign):
            for name, text in ast.literal_eval(node.value).items():
                yield Document(f"{TOPICS}:{name}", text)
