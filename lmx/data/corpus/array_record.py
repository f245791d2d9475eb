"""Texts in ArrayRecord files."""

import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from lmx.data.corpus.json_lines import TextField, try_decode_utf8

BATCH_RECORDS = 256  # read at a time
COMPRESSION_RATIO = 3  # bytes of text for a byte of it compressed, roughly


@configurable
@dataclass(frozen=True, kw_only=True)
class ArrayRecord(SpanCorpus):
    """An ArrayRecord file, or a folder of them: one document a record, in UTF-8.

    With a `text_field`, a record is a JSON object and that field of it the text. Where
    it all lies changes nothing.
    """

    path: Execution[str]
    holdout: Holdout = HoldoutDocuments()
    suffixes: tuple[str, ...] = (".arrayrecord", ".array_record")  # of a folder
    text_field: str | None = None

    def list_spans(self, size: int) -> Sequence[Span]:
        found = []
        for path, name in list_files(
            self.path, self.suffixes, "ArrayRecord", "records"
        ):
            count, bytes = (
                _open_reader(path).num_records(),
                COMPRESSION_RATIO * path.stat().st_size,
            )
            found += divide_file(name, count, bytes, size, read_stamp(path))
        return found

    def read_all(self, span: Span) -> Iterator[Document | InvalidDocument]:
        root = Path(self.path).expanduser()
        path = root if root.is_file() else root / span.file
        file = _open_reader(path)
        for begin in range(span.begin, span.end, BATCH_RECORDS):
            end = min(begin + BATCH_RECORDS, span.end)
            try:
                records = file.read(begin, end)
            except RuntimeError as error:
                raise _damage_error(
                    path, f"records {begin} to {end - 1}: {error}"
                ) from None
            for number, record in enumerate(records, begin):
                yield self._parse_record(record, span.file, path, number)

    def _parse_record(
        self, record: bytes, name: str, path: Path, number: int
    ) -> Document | InvalidDocument:
        name, place = f"{name}@{number}", f"record {number}"
        text = try_decode_utf8(record, path)
        if isinstance(text, InvalidDocument):
            return text._replace(location=f"{place}, {text.location}")
        if self.text_field is None:
            return TextField("record", "ArrayRecord").validate(text, name, path, place)
        try:
            item = json.loads(text)
        except (ValueError, RecursionError) as error:
            return InvalidDocument(
                "broken", f"not JSON ({type(error).__name__})", path, place
            )
        return TextField(self.text_field, "ArrayRecord").extract(
            item, name, path, place
        )


def _open_reader(path: Path) -> Any:
    """The file, if it is whole."""
    module = importlib.import_module("array_record.python.array_record_module")

    try:
        file = module.ArrayRecordReader(f"{path}")
        whole = file.ok()
    except RuntimeError as error:
        raise _damage_error(path, f"{error}") from None
    if not whole:
        raise _damage_error(path, "it does not end as it should")
    return file


def _damage_error(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{path}: damaged, cut short or no ArrayRecord ({what}): take it from where it"
        " is whole."
    )
