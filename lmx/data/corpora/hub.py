"""Datasets of the Hugging Face library `datasets`, by name or folder."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmx.config.names import ConfigError, configurable
from lmx.data.corpora.corpus import (
    ByDocument,
    Document,
    Fault,
    Holdout,
    Parted,
    Span,
)
from lmx.data.corpora.files import parts
from lmx.data.corpora.lines import Field

ROWS = 1024  # read at a time


@configurable
@dataclass(frozen=True, kw_only=True)
class HuggingFace(Parted):
    """A dataset as `datasets` loads it: one document a row.

    Attributes:
        name: of a dataset on the Hub, which is downloaded once, or a folder: of files
            that the library reads, or one that `save_to_disk` wrote.
        subset: the configuration, where a dataset has several.
        part: the dataset's own split.
        revision: of a dataset on the Hub; without one it is today's.
    """

    name: str
    subset: str | None = None
    part: str = "train"
    revision: str | None = None
    split: Holdout = ByDocument()
    text_field: str = "text"  # the column

    def spans(self, size: int) -> Sequence[Span]:
        table = self._table()
        rows, bytes = len(table), table.data.nbytes
        mark = f"{rows} rows of {bytes} bytes"
        return tuple(parts(self.part, rows, bytes, size, mark)) if rows else ()

    def every(self, span: Span) -> Iterator[Document | Fault]:
        table, path = self._table(), Path(self.name)
        field = Field(self.text_field, "HuggingFace")
        for begin in range(span.begin, span.end, ROWS):
            end = min(begin + ROWS, span.end)
            cells = table[begin:end][self.text_field]
            for row, cell in enumerate(cells, begin):
                yield field.checked(cell, f"{span.file}@{row}", path, f"row {row}")

    def _table(self) -> Any:
        table = _opened(self.name, self.subset, self.part, self.revision)
        if self.text_field not in table.column_names:
            raise ConfigError(
                f"{self.name}: no column {self.text_field!r}, there are"
                f" {', '.join(map(repr, table.column_names))}: set"
                " HuggingFace.text_field"
            )
        return table


@functools.lru_cache(maxsize=4)
def _opened(name: str, subset: str | None, part: str, revision: str | None) -> Any:
    """The rows of a dataset, mapped into memory."""
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"{name}: the library datasets is needed to read it: pip install"
            " 'lmx[datasets]'"
        ) from None
    try:
        if any(Path(name, file).is_file() for file in ("state.json", DICT)):
            found = datasets.load_from_disk(name)
            return found[part] if isinstance(found, datasets.DatasetDict) else found
        return datasets.load_dataset(name, subset, split=part, revision=revision)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(f"{name}: cannot be loaded: {error}") from error


DICT = "dataset_dict.json"
