"""Text in ArrayRecord files."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lmx.config.registry import ConfigError, configurable
from lmx.data.corpus.corpus import Items, Span
from lmx.data.corpus.file_corpus import (
    EntryParser,
    FileCorpus,
    divide_range,
    read_stamp,
)
from lmx.data.optional import import_optional

BATCH_RECORDS = 256  # read at a time
COMPRESSION_RATIO = 3  # bytes of text per compressed byte, approximately


@configurable
@dataclass(frozen=True, kw_only=True)
class ArrayRecord(FileCorpus):
    """An ArrayRecord file, or a folder of them: one document per record, in UTF-8.

    With a `text_field`, a record is a JSON object and that field holds the text. Moving
    the files does not change the corpus.
    """

    suffixes: tuple[str, ...] = (".arrayrecord", ".array_record")  # of a folder
    text_field: str | None = None

    single_name: ClassVar[str] = "records"

    def divide(self, path: Path, name: str, size: int) -> Iterator[Span]:
        with _open(path) as reader:
            count = reader.num_records()
        bytes = COMPRESSION_RATIO * path.stat().st_size
        return divide_range(name, count, bytes, size, read_stamp(path))

    def read_file(self, path: Path, span: Span) -> Items:
        field, is_json = self.text_field or "record", self.text_field is not None
        parser = EntryParser(path, span.file, "record", "ArrayRecord", field, is_json)
        with _open(path) as reader:
            for begin in range(span.begin, span.end, BATCH_RECORDS):
                records = reader.read(begin, min(begin + BATCH_RECORDS, span.end))
                for number, record in enumerate(records, begin):
                    yield parser.parse(record, number)


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Opens a file; refuses it where the library fails, then or while reading."""
    name = "array_record.python.array_record_module"
    module = import_optional(name, "data", f"to read {path}")
    try:
        reader = module.ArrayRecordReader(f"{path}")
        if not reader.ok():
            raise RuntimeError("its end is missing")
        yield reader
    except RuntimeError as error:
        raise ConfigError(
            f"{path}: damaged, truncated or no ArrayRecord ({error}): replace it with"
            " an intact copy."
        ) from None
