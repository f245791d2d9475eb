"""Columns of text in Parquet files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from lmx.data.corpus.file_list import list_files, read_stamp
from lmx.data.corpus.json_lines import TextField

BATCH_ROWS = 1024  # read at a time


@configurable
@dataclass(frozen=True, kw_only=True)
class Parquet(SpanCorpus):
    """A column of a Parquet file, or of a folder of them: one document a row.

    The smallest part that is read by itself is a row group. Where it all lies changes
    nothing.
    """

    path: Execution[str]
    holdout: Holdout = HoldoutDocuments()
    suffixes: tuple[str, ...] = (".parquet",)  # which files of a folder
    text_field: str = "text"  # the column

    def list_spans(self, size: int) -> Sequence[Span]:
        found = []
        for path, name in list_files(self.path, self.suffixes, "Parquet", "rows"):
            with _open_file(path) as file:
                self._check_column(file, path)
                about = file.metadata
                groups = [about.row_group(n) for n in range(about.num_row_groups)]
            first, bytes = 0, 0
            for number, group in enumerate(groups, 1):
                bytes += self._text_bytes(group)
                if bytes >= size or number == len(groups):
                    found.append(Span(name, first, number, bytes, read_stamp(path)))
                    first, bytes = number, 0
        return found

    def read_all(self, span: Span) -> Iterator[Document | InvalidDocument]:
        root = Path(self.path).expanduser()
        path = root if root.is_file() else root / span.file
        field = TextField(self.text_field, "Parquet")
        with _open_file(path) as file:
            self._check_column(file, path)
            rows = [file.metadata.row_group(n).num_rows for n in range(span.end)]
            row = sum(rows[: span.begin])
            wanted = range(span.begin, span.end)
            options = {"row_groups": wanted, "columns": [self.text_field]}
            for batch in file.iter_batches(BATCH_ROWS, use_threads=False, **options):
                for cell in batch.column(0):
                    yield _parse_cell(cell, span.file, path, row, field)
                    row += 1

    def _check_column(self, file: Any, path: Path) -> None:
        names = file.schema_arrow.names
        if self.text_field not in names:
            raise ConfigError(
                f"{path}: no column {self.text_field!r}, there are"
                f" {', '.join(map(repr, names)) or 'none'}: set Parquet.text_field"
            )

    def _text_bytes(self, group: Any) -> int:
        """Of text in a row group, roughly: of its column, not compressed."""
        columns = (group.column(n) for n in range(group.num_columns))
        sizes = {c.path_in_schema: c.total_uncompressed_size for c in columns}
        return sizes.get(self.text_field, group.total_byte_size)


def _parse_cell(
    cell: Any, name: str, path: Path, row: int, field: TextField
) -> Document | InvalidDocument:
    """The document of one row."""
    place = f"row {row}"
    try:
        text = cell.as_py()
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        return InvalidDocument(
            "broken", "not UTF-8", path, f"{place}, byte {error.start}"
        )
    return field.validate(text, f"{name}@{row}", path, place)


@contextmanager
def _open_file(path: Path) -> Iterator[Any]:
    """The file; what its library finds wrong with it, opened or read, is refused."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ConfigError(
            f"{path}: pyarrow is needed to read it: pip install 'lmx[data]'"
        ) from None
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (ArrowException, OSError) as error:
        raise ConfigError(
            f"{path}: damaged, cut short or no Parquet ({error}): take it from where it"
            " is whole."
        ) from None
