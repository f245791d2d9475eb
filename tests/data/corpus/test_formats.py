"""Every format gives the documents of the lines it was made from, whole or in parts."""

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
from lmx.data.corpus.array_record import ArrayRecord
from lmx.data.corpus.corpus import SPLITS, Corpus, HoldoutDocuments, InvalidDocument
from lmx.data.corpus.hf_datasets import HuggingFaceDataset
from lmx.data.corpus.json_lines import open_binary
from lmx.data.corpus.parquet import Parquet
from lmx.data.corpus.text import Text

ALL = HoldoutDocuments(fraction=0.0)
TEXTS = [f"text {number} ä\n" * (number % 9 + 1) for number in range(700)]


def lines(texts) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def squeezed(data: bytes, frames: int = 3) -> bytes:
    """Zstandard frames, with checksums."""
    make = zstandard.ZstdCompressor(write_checksum=True).compress
    size = -(-len(data) // frames)
    return b"".join(make(data[n : n + size]) for n in range(0, len(data), size))


def tabled(texts, **options) -> bytes:
    """A Parquet file of that column and another."""
    file = io.BytesIO()
    table = pa.table({"number": np.arange(len(texts)), "text": texts})
    parquet.write_table(
        table, file, row_group_size=50, write_page_checksum=True, **options
    )
    return file.getvalue()


def recorded(path: str, records) -> str:
    """An ArrayRecord file of those records."""
    module = importlib.import_module("array_record.python.array_record_module")
    writer = module.ArrayRecordWriter(path, "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


@pytest.fixture(params=["jsonl", "zst", "parquet", "binary", "record", "json record"])
def corpus(request, write, tmp_path) -> Corpus:
    """The texts in each format, nothing held out."""
    match request.param:
        case "jsonl":
            return Text(path=write("a.jsonl", lines(TEXTS)), holdout=ALL)
        case "zst":
            return Text(path=write("a.jsonl.zst", squeezed(lines(TEXTS))), holdout=ALL)
        case "parquet":
            return Parquet(path=write("a.parquet", tabled(TEXTS)), holdout=ALL)
        case "binary":
            column = pa.array([text.encode() for text in TEXTS], pa.binary())
            return Parquet(path=write("a.parquet", tabled(column)), holdout=ALL)
        case "record":
            path = recorded(str(tmp_path / "a"), [text.encode() for text in TEXTS])
            return ArrayRecord(path=path, holdout=ALL)
    path = recorded(str(tmp_path / "a"), lines(TEXTS).splitlines())
    return ArrayRecord(path=path, holdout=ALL, text_field="text")


@pytest.mark.parametrize("size", [900, 20_000, 10**9])
def test_parts_of_any_size_make_the_whole_in_order(corpus, size):
    spans = corpus.list_spans(size)
    items = [item for span in spans for item in corpus.read_span(span, "train")]
    assert [item[1] for item in items] == TEXTS
    assert len({item[0] for item in items}) == len(TEXTS)
    assert items == list(corpus.read_nonempty("train"))
    squeezed = isinstance(corpus, Text) and corpus.path.endswith(".zst")
    assert len(spans) == 1 if size == 10**9 or squeezed else len(spans) > 1


def test_a_folder_of_each_format_is_read_in_the_order_of_names(write, tmp_path):
    write("b/two.jsonl.zst", squeezed(lines("cd")))
    write("b/one.jsonl", lines("ab"))
    text = Text(path=f"{tmp_path}/b", suffixes=(".jsonl", ".jsonl.zst"), holdout=ALL)
    write("b/two.parquet", tabled(["c", "d"]))
    write("b/one.parquet", tabled(["a", "b"]))
    recorded(f"{tmp_path}/b/two.arrayrecord", [b"c", b"d"])
    recorded(f"{tmp_path}/b/one.arrayrecord", [b"a", b"b"])
    table, records = (
        k(path=f"{tmp_path}/b", holdout=ALL) for k in (Parquet, ArrayRecord)
    )
    for corpus in (text, table, records):
        assert [text for _, text in corpus.read_nonempty("train")] == list("abcd")


def test_every_frame_must_end(write):
    whole = squeezed(lines(TEXTS))
    for size in (len(whole) - 1, len(whole) // 2, 9):
        path = write("a.jsonl.zst", whole[:size])
        with pytest.raises(ConfigError, match=rf"cut short .* before byte {size} of"):
            list(Text(path=path).read("train"))


def test_a_flipped_byte_in_a_frame_is_refused(write):
    content = bytearray(squeezed(lines(TEXTS), 1))
    content[len(content) // 2] ^= 1
    path = write("a.jsonl.zst", bytes(content))
    with pytest.raises(ConfigError, match=r"a\.jsonl\.zst: damaged \(.* after byte"):
        list(Text(path=path).read("train"))


def test_of_a_bomb_no_more_than_a_part_is_in_memory(write):
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
    whole = tabled(TEXTS, use_dictionary=False)
    about = parquet.ParquetFile(io.BytesIO(whole)).metadata.row_group(3).column(1)
    page = about.data_page_offset + about.total_compressed_size * 3 // 4
    for place in (page, len(whole) - 3):
        content = bytearray(whole)
        content[place] ^= 255
        for damaged in (content, whole[:-100]):
            corpus = Parquet(path=write("a.parquet", bytes(damaged)))
            with pytest.raises(ConfigError, match=r"a\.parquet: damaged, cut short or"):
                list(corpus.read("train"))


def test_a_damaged_record_file_is_refused(tmp_path):
    path = tmp_path / "a"
    recorded(f"{path}", [text.encode() for text in TEXTS])
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match="damaged, cut short or no ArrayRecord"):
        list(ArrayRecord(path=f"{path}").read("train"))
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="damaged, cut short or no ArrayRecord"):
        list(ArrayRecord(path=f"{path}").read("train"))


def faults(corpus: Corpus) -> list[tuple[str, str, str]]:
    """What of a corpus is no document."""
    items = (
        i for span in corpus.list_spans(10**9) for i in corpus.read_span(span, "train")
    )
    return [
        (i.kind, i.reason, i.location) for i in items if isinstance(i, InvalidDocument)
    ]


def test_rows_that_are_no_text_are_told_by_number(write):
    column = pa.array([b"a", b"", None, b"\xff", b"b"], pa.binary())
    kept = Parquet(path=write("a.parquet", tabled(column)), holdout=ALL)
    assert faults(kept) == [
        ("empty", "empty text", "row 1"),
        ("broken", "no text but NoneType in 'text'", "row 2"),
        ("broken", "not UTF-8", "row 3, byte 0"),
    ]
    with pytest.raises(ConfigError, match="no text but NoneType in 'text' at row 2"):
        list(kept.read_nonempty("train"))


def test_records_that_are_no_text_are_told_by_number(tmp_path):
    path = recorded(f"{tmp_path}/a", [b"a", b"", b"b\xff", b"b"])
    assert faults(ArrayRecord(path=path, holdout=ALL)) == [
        ("empty", "empty text", "record 1"),
        ("broken", "not UTF-8", "record 2, byte 1 (0xff)"),
    ]
    path = recorded(f"{tmp_path}/b", [b'{"text": "a"}', b"[]", b"{", b'{"body": 1}'])
    assert [
        (reason, place)
        for _, reason, place in faults(ArrayRecord(path=path, text_field="text"))
    ] == [
        ("no JSON object, {...}", "record 1"),
        ("not JSON (JSONDecodeError)", "record 2"),
        ("no field 'text'", "record 3"),
    ]


def test_a_column_that_is_not_there_is_refused_with_those_that_are(write):
    corpus = Parquet(path=write("a.parquet", tabled(TEXTS)), text_field="body")
    with pytest.raises(ConfigError, match="no column 'body', there are 'number', 'te"):
        corpus.list_spans(1)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the library's own, and no word on the network."""
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", f"{tmp_path}/cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


def test_datasets_are_read_from_folders_of_either_kind(hub, write, tmp_path):
    saved = hub.Dataset.from_dict({"text": TEXTS})
    saved.save_to_disk(f"{tmp_path}/saved")
    hub.DatasetDict({"other": saved}).save_to_disk(f"{tmp_path}/several")
    write("files/train.jsonl", lines(TEXTS))
    for name, part in (("saved", "train"), ("several", "other"), ("files", "train")):
        corpus = HuggingFaceDataset(
            name=f"{tmp_path}/{name}", dataset_split=part, holdout=ALL
        )
        for size in (900, 10**9):
            spans = corpus.list_spans(size)
            items = [item for span in spans for item in corpus.read_span(span, "train")]
            assert [item[1] for item in items] == TEXTS
            assert (len(spans) > 3) == (size < 10**9)
    for wrong, words in (
        (
            HuggingFaceDataset(name=f"{tmp_path}/files", dataset_split="x"),
            "cannot be loaded: Unknown",
        ),
        (HuggingFaceDataset(name=f"{tmp_path}/none"), "none: cannot be loaded: "),
        (
            HuggingFaceDataset(name=f"{tmp_path}/files", text_field="b"),
            "no column 'b', there",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            wrong.list_spans(1)


def test_splits_of_a_table_share_no_row(write):
    corpus = Parquet(
        path=write("a.parquet", tabled(TEXTS)), holdout=HoldoutDocuments(fraction=0.2)
    )
    parts = [[name for name, _ in corpus.read(split)] for split in SPLITS]
    assert len({*parts[0], *parts[1]}) == len(parts[0]) + len(parts[1]) == len(TEXTS)
    assert 100 < len(parts[1]) < 180
