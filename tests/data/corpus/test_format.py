"""Formats of corpora: each yields the same documents, whole or in spans."""

import importlib
import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import SPLITS, Corpus, HoldoutDocuments, InvalidDocument
from lmx.data.corpus.format import ArrayRecord, HuggingFaceDataset, Parquet
from lmx.data.corpus.text import Text, open_binary

ALL = HoldoutDocuments(fraction=0.0)
EXPECTING = "not JSON (Expecting property name enclosed in double quotes)"
TEXTS = [f"text {number} ä\n" * (number % 9 + 1) for number in range(700)]


def to_lines(texts) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def compress(data: bytes, frames: int = 3) -> bytes:
    """Returns Zstandard frames with checksums."""
    encode = zstandard.ZstdCompressor(write_checksum=True).compress
    size = -(-len(data) // frames)
    return b"".join(encode(data[n : n + size]) for n in range(0, len(data), size))


def to_parquet(texts, **options) -> bytes:
    """Returns a Parquet file with the column and another one."""
    file = io.BytesIO()
    table = pa.table({"number": np.arange(len(texts)), "text": texts})
    parquet.write_table(
        table, file, row_group_size=50, write_page_checksum=True, **options
    )
    return file.getvalue()


def write_records(path: str, records) -> str:
    """Writes an ArrayRecord file."""
    module = importlib.import_module("array_record.python.array_record_module")
    writer = module.ArrayRecordWriter(path, "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


@pytest.fixture(params=["jsonl", "zst", "parquet", "binary", "record", "json record"])
def corpus(request, write, tmp_path) -> Corpus:
    """The texts in each format, without holdout."""
    match request.param:
        case "jsonl":
            return Text(path=write("a.jsonl", to_lines(TEXTS)), holdout=ALL)
        case "zst":
            return Text(
                path=write("a.jsonl.zst", compress(to_lines(TEXTS))), holdout=ALL
            )
        case "parquet":
            return Parquet(path=write("a.parquet", to_parquet(TEXTS)), holdout=ALL)
        case "binary":
            column = pa.array([text.encode() for text in TEXTS], pa.binary())
            return Parquet(path=write("a.parquet", to_parquet(column)), holdout=ALL)
        case "record":
            path = write_records(str(tmp_path / "a"), [text.encode() for text in TEXTS])
            return ArrayRecord(path=path, holdout=ALL)
    path = write_records(str(tmp_path / "a"), to_lines(TEXTS).splitlines())
    return ArrayRecord(path=path, holdout=ALL, text_field="text")


@pytest.mark.parametrize("size", [900, 20_000, 10**9])
def test_spans_of_any_size_have_all_documents_in_order(corpus, size):
    spans = corpus.list_spans(size)
    items = [item for span in spans for item in corpus.read_span(span, "train")]
    assert [item[1] for item in items] == TEXTS
    assert len({item[0] for item in items}) == len(TEXTS)
    assert items == list(corpus.read_nonempty("train"))
    compressed = isinstance(corpus, Text) and corpus.path.endswith(".zst")
    assert len(spans) == 1 if size == 10**9 or compressed else len(spans) > 1


def test_a_folder_of_each_format_is_read_in_the_order_of_names(write, tmp_path):
    write("b/two.jsonl.zst", compress(to_lines("cd")))
    write("b/one.jsonl", to_lines("ab"))
    text = Text(path=f"{tmp_path}/b", suffixes=(".jsonl", ".jsonl.zst"), holdout=ALL)
    write("b/two.parquet", to_parquet(["c", "d"]))
    write("b/one.parquet", to_parquet(["a", "b"]))
    write_records(f"{tmp_path}/b/two.arrayrecord", [b"c", b"d"])
    write_records(f"{tmp_path}/b/one.arrayrecord", [b"a", b"b"])
    table, records = (
        k(path=f"{tmp_path}/b", holdout=ALL) for k in (Parquet, ArrayRecord)
    )
    for corpus in (text, table, records):
        assert [text for _, text in corpus.read_nonempty("train")] == list("abcd")


def test_a_truncated_frame_is_refused(write):
    whole = compress(to_lines(TEXTS))
    for size in (len(whole) - 1, len(whole) // 2, 9):
        path = write("a.jsonl.zst", whole[:size])
        with pytest.raises(ConfigError, match=rf"truncated .* before byte {size} of"):
            list(Text(path=path).read("train"))


def test_a_flipped_byte_in_a_frame_is_refused(write):
    content = bytearray(compress(to_lines(TEXTS), 1))
    content[len(content) // 2] ^= 1
    path = write("a.jsonl.zst", bytes(content))
    with pytest.raises(ConfigError, match=r"a\.jsonl\.zst: damaged .* after byte"):
        list(Text(path=path).read("train"))


def test_a_zstd_bomb_is_not_decompressed_at_once(write):
    path = Path(write("bomb.zst", zstandard.ZstdCompressor().compress(bytes(2**29))))
    assert len(path.read_bytes()) < 2**16
    tracemalloc.start()
    try:
        with open_binary(path) as file:
            assert file.read(9) == bytes(9)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**28


def test_a_damaged_parquet_is_refused(write):
    whole = to_parquet(TEXTS, use_dictionary=False)
    about = parquet.ParquetFile(io.BytesIO(whole)).metadata.row_group(3).column(1)
    page = about.data_page_offset + about.total_compressed_size * 3 // 4
    for place in (page, len(whole) - 3):
        content = bytearray(whole)
        content[place] ^= 255
        for damaged in (content, whole[:-100]):
            corpus = Parquet(path=write("a.parquet", bytes(damaged)))
            with pytest.raises(ConfigError, match=r"a\.parquet: damaged, truncated or"):
                list(corpus.read("train"))


def test_a_damaged_record_file_is_refused(tmp_path):
    path = tmp_path / "a"
    write_records(f"{path}", [text.encode() for text in TEXTS])
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match="damaged, truncated or not ArrayRecord"):
        list(ArrayRecord(path=f"{path}").read("train"))
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="damaged, truncated or not ArrayRecord"):
        list(ArrayRecord(path=f"{path}").read("train"))


def find_invalid(corpus: Corpus) -> list[tuple[str, str, str]]:
    """Returns the invalid entries of a corpus."""
    items = (
        i for span in corpus.list_spans(10**9) for i in corpus.read_span(span, "train")
    )
    return [
        (i.kind, i.reason, i.location) for i in items if isinstance(i, InvalidDocument)
    ]


def test_invalid_rows_have_their_number(write):
    column = pa.array([b"a", b"", None, b"\xff", b"b"], pa.binary())
    kept = Parquet(path=write("a.parquet", to_parquet(column)), holdout=ALL)
    assert find_invalid(kept) == [
        ("empty", "empty text", "row 1"),
        ("invalid", "NoneType instead of text in 'text'", "row 2"),
        ("invalid", "not UTF-8 (0xff)", "row 3, byte 0"),
    ]
    with pytest.raises(ConfigError, match="NoneType instead of text"):
        list(kept.read_nonempty("train"))


def test_invalid_records_have_their_number(tmp_path):
    path = write_records(f"{tmp_path}/a", [b"a", b"", b"b\xff", b"b"])
    assert find_invalid(ArrayRecord(path=path, holdout=ALL)) == [
        ("empty", "empty text", "record 1"),
        ("invalid", "not UTF-8 (0xff)", "record 2, byte 1"),
    ]
    path = write_records(
        f"{tmp_path}/b", [b'{"text": "a"}', b"[]", b"{", b'{"body": 1}']
    )
    assert [
        (reason, place)
        for _, reason, place in find_invalid(ArrayRecord(path=path, text_field="text"))
    ] == [
        ("not a JSON object, {...}", "record 1"),
        (EXPECTING, "record 2, byte 1"),
        ("no field 'text'", "record 3"),
    ]


def test_a_missing_column_is_refused_with_the_existing_ones(write):
    corpus = Parquet(path=write("a.parquet", to_parquet(TEXTS)), text_field="body")
    with pytest.raises(
        ConfigError, match="no column 'body', the columns are 'number', 'te"
    ):
        corpus.list_spans(1)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The library with a cache of its own, offline."""
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", f"{tmp_path}/cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


def test_datasets_are_read_from_saved_and_plain_folders(hub, write, tmp_path):
    saved = hub.Dataset.from_dict({"text": TEXTS})
    saved.save_to_disk(f"{tmp_path}/saved")
    hub.DatasetDict({"other": saved}).save_to_disk(f"{tmp_path}/several")
    write("files/train.jsonl", to_lines(TEXTS))
    for name, part in (("saved", "train"), ("several", "other"), ("files", "train")):
        corpus = HuggingFaceDataset(
            name=f"{tmp_path}/{name}", dataset_split=part, holdout=ALL
        )
        for size in (900, 10**9):
            spans = corpus.list_spans(size)
            items = [item for span in spans for item in corpus.read_span(span, "train")]
            assert [item[1] for item in items] == TEXTS
            assert (len(spans) > 3) == (size < 10**9)
    for corpus, message in (
        (
            HuggingFaceDataset(name=f"{tmp_path}/files", dataset_split="x"),
            "cannot be loaded: Unknown",
        ),
        (HuggingFaceDataset(name=f"{tmp_path}/none"), "none: cannot be loaded: "),
        (
            HuggingFaceDataset(name=f"{tmp_path}/files", text_field="b"),
            "no column 'b', the",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            corpus.list_spans(1)


def test_splits_of_a_table_share_no_row(write):
    corpus = Parquet(
        path=write("a.parquet", to_parquet(TEXTS)),
        holdout=HoldoutDocuments(fraction=0.2),
    )
    parts = [[name for name, _ in corpus.read(split)] for split in SPLITS]
    assert len({*parts[0], *parts[1]}) == len(parts[0]) + len(parts[1]) == len(TEXTS)
    assert 100 < len(parts[1]) < 180
