"""Corpora in Parquet and ArrayRecord files, and datasets of Hugging Face."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lmx.config.registry import ConfigError, configurable
from lmx.data.corpus.corpus import (
    EntryParser,
    FileCorpus,
    Holdout,
    HoldoutDocuments,
    Items,
    Span,
    SpanCorpus,
    divide_range,
    read_stamp,
)
from lmx.data.optional import import_optional

BATCH_ROWS = 1024  # read at a time
SAVED_FILES = ("state.json", "dataset_dict.json")  # written by `save_to_disk`
BATCH_RECORDS = 256  # read at a time
COMPRESSION_RATIO = 3  # bytes of text per compressed byte, approximately


@configurable
@dataclass(frozen=True, kw_only=True)
class Parquet(FileCorpus):
    """A column of a Parquet file, or of a folder of them: one document per row.

    The smallest span is a row group. Moving the files does not change the corpus.
    """

    suffixes: tuple[str, ...] = (".parquet",)  # which files of a folder
    text_field: str = "text"  # the column

    single_name: ClassVar[str] = "rows"

    def divide(self, path: Path, name: str, size: int) -> Iterator[Span]:
        with self._open(self._parser(path, name)) as file:
            groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
        bytes = sum(map(self._text_bytes, groups))
        return divide_range(name, len(groups), bytes, size, read_stamp(path))

    def read_file(self, path: Path, span: Span) -> Items:
        parser = self._parser(path, span.file)
        groups, columns = range(span.begin, span.end), [self.text_field]
        with self._open(parser) as file:
            first = sum(file.metadata.row_group(n).num_rows for n in range(span.begin))
            batches = file.iter_batches(BATCH_ROWS, groups, columns, False)
            cells = (cell for batch in batches for cell in batch.column(0))
            for row, cell in enumerate(cells, first):
                is_text = cell.is_valid and hasattr(cell, "as_buffer")
                raw = cell.as_buffer().to_pybytes() if is_text else cell.as_py()
                yield parser.parse(raw, row)

    def _parser(self, path: Path, name: str) -> EntryParser:
        return EntryParser(path, name, "row", "Parquet", self.text_field)

    def _text_bytes(self, group: Any) -> int:
        """Uncompressed bytes of the column in a row group, approximately of text."""
        columns = (group.column(n) for n in range(group.num_columns))
        sizes = {c.path_in_schema: c.total_uncompressed_size for c in columns}
        return sizes.get(self.text_field, group.total_byte_size)

    @contextmanager
    def _open(self, parser: EntryParser) -> Iterator[Any]:
        """Opens a file; refuses it where the library fails, then or while reading."""
        path = parser.path
        arrow = import_optional("pyarrow", "data", f"to read {path}")
        parquet = import_optional("pyarrow.parquet", "data", f"to read {path}")
        try:
            with parquet.ParquetFile(path, page_checksum_verification=True) as file:
                parser.check_column(file.schema_arrow.names)
                yield file
        except (arrow.ArrowException, OSError) as error:
            raise ConfigError(
                f"{path}: damaged, truncated or not Parquet ({error}): replace it with"
                " an intact copy."
            ) from None


@configurable
@dataclass(frozen=True, kw_only=True)
class HuggingFaceDataset(SpanCorpus):
    """A dataset as loaded by `datasets`: one document per row.

    Attributes:
        name: a dataset on the Hub, which is downloaded once, or a folder: of files
            that the library reads, or one written by `save_to_disk`.
        subset: the configuration, for a dataset with several.
        dataset_split: the split of the dataset that is read.
        revision: version of a dataset on the Hub; None: the latest.
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
        stamp = f"{rows} rows of {bytes} bytes"
        spans = divide_range(self.dataset_split, rows, bytes, size, stamp)
        return tuple(spans) if rows else ()

    def read_all(self, span: Span) -> Items:
        table, parser = self._load(), self._parser(span.file)
        for begin in range(span.begin, span.end, BATCH_ROWS):
            cells = table[begin : min(begin + BATCH_ROWS, span.end)][self.text_field]
            for row, cell in enumerate(cells, begin):
                yield parser.parse(cell, row)

    def _parser(self, name: str) -> EntryParser:
        path = Path(self.name)
        return EntryParser(path, name, "row", "HuggingFaceDataset", self.text_field)

    def _load(self) -> Any:
        part = self.dataset_split
        table = _load_dataset(self.name, self.subset, part, self.revision)
        self._parser(part).check_column(table.column_names)
        return table


@functools.lru_cache(maxsize=4)
def _load_dataset(name: str, subset: str | None, split: str, revision: str | None):
    datasets = import_optional("datasets", "datasets", f"to read {name}")
    try:
        if not any(Path(name, file).is_file() for file in SAVED_FILES):
            return datasets.load_dataset(name, subset, split=split, revision=revision)
        found = datasets.load_from_disk(name)
        return found[split] if isinstance(found, datasets.DatasetDict) else found
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(f"{name}: cannot be loaded: {error}") from error


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
            f"{path}: damaged, truncated or not ArrayRecord ({error}): replace it with"
            " an intact copy."
        ) from None
