"""Texts in ArrayRecord files."""

import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from lmx.data.corpora.lines import Field, utf8

RECORDS = 256  # read at a time
RATIO = 3  # bytes of text for a byte of it compressed, roughly


@configurable
@dataclass(frozen=True, kw_only=True)
class ArrayRecord(Parted):
    """An ArrayRecord file, or a folder of them: one document a record, in UTF-8.

    With a `text_field`, a record is a JSON object and that field of it the text. Where
    it all lies changes nothing.
    """

    path: Execution[str]
    split: Holdout = ByDocument()
    suffixes: tuple[str, ...] = (".arrayrecord", ".array_record")  # of a folder
    text_field: str | None = None

    def spans(self, size: int) -> Sequence[Span]:
        found = []
        for path, name in listed(self.path, self.suffixes, "ArrayRecord", "records"):
            count, bytes = _opened(path).num_records(), RATIO * path.stat().st_size
            found += parts(name, count, bytes, size, stamp(path))
        return found

    def every(self, span: Span) -> Iterator[Document | Fault]:
        root = Path(self.path).expanduser()
        path = root if root.is_file() else root / span.file
        file = _opened(path)
        for begin in range(span.begin, span.end, RECORDS):
            end = min(begin + RECORDS, span.end)
            try:
                records = file.read(begin, end)
            except RuntimeError as error:
                raise _damage(path, f"records {begin} to {end - 1}: {error}") from None
            for number, record in enumerate(records, begin):
                yield self._document(record, span.file, path, number)

    def _document(
        self, record: bytes, name: str, path: Path, number: int
    ) -> Document | Fault:
        name, place = f"{name}@{number}", f"record {number}"
        text = utf8(record, path)
        if isinstance(text, Fault):
            return text._replace(place=f"{place}, {text.place}")
        if self.text_field is None:
            return Field("record", "ArrayRecord").checked(text, name, path, place)
        try:
            item = json.loads(text)
        except (ValueError, RecursionError) as error:
            return Fault("broken", f"not JSON ({type(error).__name__})", path, place)
        return Field(self.text_field, "ArrayRecord").of(item, name, path, place)


def _opened(path: Path) -> Any:
    """The file, if it is whole."""
    module = importlib.import_module("array_record.python.array_record_module")

    try:
        file = module.ArrayRecordReader(f"{path}")
        whole = file.ok()
    except RuntimeError as error:
        raise _damage(path, f"{error}") from None
    if not whole:
        raise _damage(path, "it does not end as it should")
    return file


def _damage(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{path}: damaged, cut short or no ArrayRecord ({what}): take it from where it"
        " is whole."
    )
