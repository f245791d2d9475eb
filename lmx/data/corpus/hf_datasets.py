"""Datasets of the Hugging Face library `datasets`, by name or folder."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmx.config.registry import ConfigError, configurable
from lmx.data.corpus.corpus import (
    Document,
    Holdout,
    HoldoutDocuments,
    InvalidDocument,
    Span,
    SpanCorpus,
)
from lmx.data.corpus.file_list import divide_file
from lmx.data.corpus.json_lines import TextField

BATCH_ROWS = 1024  # read at a time


@configurable
@dataclass(frozen=True, kw_only=True)
class HuggingFaceDataset(SpanCorpus):
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
    dataset_split: str = "train"
    revision: str | None = None
    holdout: Holdout = HoldoutDocuments()
    text_field: str = "text"  # the column

    def list_spans(self, size: int) -> Sequence[Span]:
        table = self._load()
        rows, bytes = len(table), table.data.nbytes
        mark = f"{rows} rows of {bytes} bytes"
        return (
            tuple(divide_file(self.dataset_split, rows, bytes, size, mark))
            if rows
            else ()
        )

    def read_all(self, span: Span) -> Iterator[Document | InvalidDocument]:
        table, path = self._load(), Path(self.name)
        field = TextField(self.text_field, "HuggingFace")
        for begin in range(span.begin, span.end, BATCH_ROWS):
            end = min(begin + BATCH_ROWS, span.end)
            cells = table[begin:end][self.text_field]
            for row, cell in enumerate(cells, begin):
                yield field.validate(cell, f"{span.file}@{row}", path, f"row {row}")

    def _load(self) -> Any:
        table = _load_dataset(self.name, self.subset, self.dataset_split, self.revision)
        if self.text_field not in table.column_names:
            raise ConfigError(
                f"{self.name}: no column {self.text_field!r}, there are"
                f" {', '.join(map(repr, table.column_names))}: set"
                " HuggingFaceDataset.text_field"
            )
        return table


@functools.lru_cache(maxsize=4)
def _load_dataset(
    name: str, subset: str | None, part: str, revision: str | None
) -> Any:
    """The rows of a dataset, mapped into memory."""
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"{name}: the library datasets is needed to read it: pip install"
            " 'lmx[datasets]'"
        ) from None
    try:
        if any(Path(name, file).is_file() for file in ("state.json", DATASET_DICT)):
            found = datasets.load_from_disk(name)
            return found[part] if isinstance(found, datasets.DatasetDict) else found
        return datasets.load_dataset(name, subset, split=part, revision=revision)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(f"{name}: cannot be loaded: {error}") from error


DATASET_DICT = "dataset_dict.json"
