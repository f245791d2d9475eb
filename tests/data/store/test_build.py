"""Building of token stores."""

from dataclasses import dataclass, replace

import pytest

from lmx.config.registry import ConfigError, configurable
from lmx.core import console
from lmx.data.corpus.corpus import Document, HoldoutDocuments, HoldoutTail, Span
from lmx.data.corpus.text import Text
from lmx.data.curate.filter import Filter, LengthFilter
from lmx.data.store.build import BuildProgress
from lmx.data.store.executor import ProcessPool, RayExecutor
from lmx.data.store.shard_plan import ShardSpec
from lmx.data.store.shard_writer import ShardCounts
from lmx.data.store.store import MANIFEST_FILE, open_store, read_manifest, verify
from tests.data.store.conftest import (
    ALL,
    make_config,
    read_files,
    read_texts,
    to_lines,
)


@pytest.mark.parametrize("size", [400, 3000, 10**9])
def test_a_store_has_every_document_in_order_for_any_shard_size(folder, tmp_path, size):
    config = make_config(folder, shard_bytes=size)
    store = config.write(tmp_path / "store")
    expected = [text for _, text in config.sources["a"].read_nonempty("train")]
    assert read_texts(store) == expected and len(expected) == 121
    assert store.bytes == sum(len(text.encode()) for text in expected)
    assert store.sources == {"a": (range(121),)}
    assert list(verify(tmp_path / "store")) == []
    shards = read_manifest(tmp_path / "store")["shards"]
    assert len(shards) == {400: 16, 3000: 3, 10**9: 1}[size]


def test_several_processes_write_the_bytes_of_one(folder, tmp_path):
    config = make_config(folder, shard_bytes=900)
    config.write(tmp_path / "one")
    replace(config, executor=ProcessPool(workers=2)).write(tmp_path / "two")
    assert read_files(tmp_path / "one") == read_files(tmp_path / "two")


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # of the cluster's own libraries
def test_a_ray_cluster_writes_the_bytes_of_one_process(write, tmp_path):
    path = write("a.jsonl", to_lines(*(f"text {n} " * 20 for n in range(300))))
    config = make_config(path, shard_bytes=15_000)
    config.write(tmp_path / "one")
    ray = replace(config, executor=RayExecutor())
    ray.write(tmp_path / "cluster")
    files = read_files(tmp_path / "one")
    assert len(files) >= 8 and read_files(tmp_path / "cluster") == files
    invalid = Text(path=write("b.jsonl", b'{"text": "\xff"}\n'))
    with pytest.raises(ConfigError, match=r"b\.jsonl: not UTF-8 \(0xff\) at byte 10"):
        replace(ray, sources={"b": invalid}).write(tmp_path / "invalid")


def test_splits_share_no_document_and_lose_none(folder, tmp_path):
    corpus = Text(
        path=f"{folder}",
        holdout=HoldoutDocuments(fraction=0.3),
        suffixes=(".jsonl",),
    )
    config = make_config(folder, sources={"a": corpus}, shard_bytes=3000)
    train = read_texts(config.write(tmp_path / "train"))
    config = replace(config, split="validation")
    validation = read_texts(config.write(tmp_path / "validation"))
    assert sorted(train + validation) == sorted(
        text for split in ("train", "validation") for _, text in corpus.read(split)
    )
    assert len(train) + len(validation) == 120 and 20 < len(validation) < 60


def test_the_tail_of_each_document_is_held_out_in_every_shard(tmp_path, write):
    path = write("a.jsonl", to_lines("0123456789", "ab" * 10))
    corpus = Text(path=path, holdout=HoldoutTail())
    sources = {"a": corpus}
    config = make_config("", sources=sources, split="validation", shard_bytes=20)
    assert read_texts(config.write(tmp_path / "store")) == ["9", "ab"]


@configurable
@dataclass(frozen=True, kw_only=True)
class UppercaseWithoutA(Filter):
    """Converts to upper case, without the letter A."""

    def __call__(self, document: Document) -> Document | str:
        return document._replace(text=document.text.upper().replace("A", ""))


def test_filters_apply_in_order_and_their_reasons_are_counted(tmp_path, write):
    path = write("a.jsonl", to_lines("b", "aaa", "bbb", "ab", "bbbbbb"))
    reasons = {"fewer than 2 characters": 1, "more than 3 characters": 1, "no text": 1}
    last = LengthFilter(min_chars=0, max_chars=3)
    filters = (LengthFilter(min_chars=2), UppercaseWithoutA(), last)
    store = make_config(path, filters=filters).write(tmp_path / "store")
    assert read_texts(store) == ["BBB", "B"]
    manifest = read_manifest(tmp_path / "store")
    assert manifest["excluded"]["a"]["filtered"] == reasons


def test_sources_are_separate_and_in_the_order_of_the_config(tmp_path, write):
    sources = {
        name: Text(path=write(f"{name}.jsonl", to_lines(*(name * 20))), holdout=ALL)
        for name in "zab"
    }
    config = make_config("", sources=sources, shard_bytes=100)
    store = config.write(tmp_path / "store")
    assert "".join(read_texts(store)) == "z" * 20 + "a" * 20 + "b" * 20
    ranges = {"z": (range(20),), "a": (range(20, 40),), "b": (range(40, 60),)}
    assert store.sources == ranges


def test_new_files_are_appended_and_an_open_store_stays_readable(tmp_path, write):
    write("texts/b.jsonl", to_lines("b"))
    config = make_config(tmp_path / "texts")
    old = config.write(tmp_path / "store")
    before = read_files(tmp_path / "store")
    write("texts/a.jsonl", to_lines("a"))
    other = Text(path=write("c.jsonl", to_lines("c")), holdout=ALL)
    both = make_config("", sources={"other": other, **config.sources})
    store = both.write(tmp_path / "store")
    assert read_texts(old) == ["b"] and read_texts(store) == ["b", "c", "a"]
    assert store.sources == {"a": (range(1), range(2, 3)), "other": (range(1, 2),)}
    assert list(verify(tmp_path / "store")) == []
    after = read_files(tmp_path / "store")
    for name in before.keys() - {MANIFEST_FILE}:
        assert after[name].startswith(before[name])


def test_a_store_is_intact_for_readers_during_an_append(tmp_path, write, monkeypatch):
    write("texts/a.jsonl", to_lines("a"))
    make_config(tmp_path / "texts").write(tmp_path / "store")
    write("texts/b.jsonl", to_lines("b"))

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lmx.data.store.shard_writer._write_manifest", stop)
    with pytest.raises(KeyboardInterrupt):
        make_config(tmp_path / "texts").write(tmp_path / "store")
    assert read_texts(open_store(tmp_path / "store")) == ["a"]
    monkeypatch.undo()
    store = make_config(tmp_path / "texts").write(tmp_path / "store")
    assert read_texts(store) == ["a", "b"]


def test_a_finished_store_is_not_rewritten(folder, tmp_path):
    def read_times():
        files = (tmp_path / "store").rglob("*")
        return {path: path.stat().st_mtime_ns for path in files}

    make_config(folder).write(tmp_path / "store")
    before = read_times()
    make_config(folder).write(tmp_path / "store")
    assert read_times() == before


def show_progress(reports) -> None:
    """Shows progress of a build of three shards, of which the last is finished."""
    specs = [ShardSpec(number, "a", (Span("", 0, 1, 100, ""),)) for number in range(3)]
    progress = BuildProgress("building", specs, specs[:2])
    for report in reports:
        progress.update(ShardCounts(*report[:4], done=report[4]))
    progress.close()


REPORTS = [(0, 2, 50, 60, False), (0, 4, 90, 99, True), (1, 1, 7, 9, True)]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_short_build_prints_no_progress(capsys, count):
    show_progress(REPORTS[:count])
    assert capsys.readouterr() == ("", "")


def test_a_long_build_prints_lines_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_INTERVAL", 0.0)
    show_progress(REPORTS)
    out, lines = capsys.readouterr()
    first, _, last = lines.splitlines()
    assert out == "" and "\r" not in lines
    assert first.startswith("building: 2 documents, ") and "tokens/s" in first
    assert last.startswith("building: 5 documents, ")
    assert last.endswith(" 0 minutes left")


def test_a_bar_on_a_terminal_includes_finished_shards(capsys, monkeypatch):
    monkeypatch.setattr(console, "BAR_DELAY", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    show_progress(REPORTS)
    bar = capsys.readouterr().err
    assert "building: 100%" in bar and "300/300" in bar and "5 documents" in bar
