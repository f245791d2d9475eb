"""What the building of a store must keep."""

from dataclasses import dataclass, replace

import pytest

from lmx.config.registry import configurable
from lmx.data.corpus.corpus import Document, HoldoutDocuments, HoldoutTail
from lmx.data.corpus.text import Text
from lmx.data.curate.filter import Filter, LengthFilter
from lmx.data.store.executor import ProcessPool
from lmx.data.store.store import MANIFEST_FILE, open_store, read_manifest, verify
from tests.data.store.conftest import ALL, content, lines, page, texts


@pytest.mark.parametrize("size", [400, 3000, 10**9])
def test_a_store_has_every_document_in_order_whatever_its_shards(
    folder, tmp_path, size
):
    build = page(folder, shard_bytes=size)
    store = build.write(tmp_path / "store")
    wanted = [text for _, text in build.sources["a"].read_nonempty("train")]
    assert texts(store) == wanted and len(wanted) == 121
    assert store.bytes == sum(len(text.encode()) for text in wanted)
    assert store.sources == {"a": (range(121),)}
    assert list(verify(tmp_path / "store")) == []
    shards = read_manifest(tmp_path / "store")["shards"]
    assert len(shards) == {400: 16, 3000: 3, 10**9: 1}[size]


def test_processes_make_the_bytes_of_one(folder, tmp_path):
    page(folder, shard_bytes=900).write(tmp_path / "one")
    page(folder, shard_bytes=900, executor=ProcessPool(workers=2)).write(
        tmp_path / "two"
    )
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_splits_share_no_document_and_lose_none(folder, tmp_path):
    corpus = Text(
        path=f"{folder}", holdout=HoldoutDocuments(fraction=0.3), suffixes=(".jsonl",)
    )
    build = page(folder, sources={"a": corpus}, shard_bytes=3000)
    train = texts(build.write(tmp_path / "train"))
    held = texts(replace(build, split="validation").write(tmp_path / "held"))
    assert sorted(train + held) == sorted(
        text for split in ("train", "validation") for _, text in corpus.read(split)
    )
    assert len(train) + len(held) == 120 and 20 < len(held) < 60


def test_a_tail_is_cut_from_each_document_in_every_part(tmp_path, write):
    corpus = Text(
        path=write("a.jsonl", lines("0123456789", "ab" * 10)), holdout=HoldoutTail()
    )
    build = page("", sources={"a": corpus}, split="validation", shard_bytes=20)
    assert texts(build.write(tmp_path / "store")) == ["9", "ab"]


@configurable
@dataclass(frozen=True, kw_only=True)
class Shout(Filter):
    """Capitals, without the letter A."""

    def __call__(self, document: Document) -> Document | str:
        return document._replace(text=document.text.upper().replace("A", ""))


def test_filters_see_what_those_before_them_left_and_reasons_are_counted(
    tmp_path, write
):
    path = write("a.jsonl", lines("b", "aaa", "bbb", "ab", "bbbbbb"))
    reasons = {"fewer than 2 characters": 1, "more than 3 characters": 1}
    reasons["no text was left"] = 1
    filters = (
        LengthFilter(min_chars=2),
        Shout(),
        LengthFilter(min_chars=0, max_chars=3),
    )
    store = page(path, filters=filters).write(tmp_path / "store")
    assert texts(store) == ["BBB", "B"]
    assert read_manifest(tmp_path / "store")["left_out"]["a"]["filtered"] == reasons


def test_sources_stand_by_themselves_in_the_order_of_the_page(tmp_path, write):
    sources = {
        name: Text(path=write(f"{name}.jsonl", lines(*(name * 20))), holdout=ALL)
        for name in "zab"
    }
    store = page("", sources=sources, shard_bytes=100).write(tmp_path / "store")
    assert "".join(texts(store)) == "z" * 20 + "a" * 20 + "b" * 20
    assert store.sources == {
        "z": (range(20),),
        "a": (range(20, 40),),
        "b": (range(40, 60),),
    }


def test_what_is_new_is_appended_and_what_was_read_stays_readable(tmp_path, write):
    write("texts/b.jsonl", lines("b"))
    build = page(tmp_path / "texts")
    old = build.write(tmp_path / "store")
    before = content(tmp_path / "store")
    write("texts/a.jsonl", lines("a"))
    other = Text(path=write("c.jsonl", lines("c")), holdout=ALL)
    both = page("", sources={"other": other, **build.sources})
    store = both.write(tmp_path / "store")
    assert texts(old) == ["b"] and texts(store) == ["b", "c", "a"]
    assert store.sources == {"a": (range(1), range(2, 3)), "other": (range(1, 2),)}
    assert list(verify(tmp_path / "store")) == []
    after = content(tmp_path / "store")
    for name in before.keys() - {MANIFEST_FILE}:
        assert after[name].startswith(before[name])


def test_a_store_is_whole_for_readers_while_more_is_appended(
    tmp_path, write, monkeypatch
):
    write("texts/a.jsonl", lines("a"))
    page(tmp_path / "texts").write(tmp_path / "store")
    write("texts/b.jsonl", lines("b"))

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lmx.data.store.commit.write_whole", stop)  # the manifest
    with pytest.raises(KeyboardInterrupt):
        page(tmp_path / "texts").write(tmp_path / "store")
    assert texts(open_store(tmp_path / "store")) == ["a"]
    monkeypatch.undo()
    assert texts(page(tmp_path / "texts").write(tmp_path / "store")) == ["a", "b"]


def test_a_finished_store_is_left_alone(folder, tmp_path):
    def state():
        files = (tmp_path / "store").rglob("*")
        return {path: path.stat().st_mtime_ns for path in files}

    page(folder).write(tmp_path / "store")
    before = state()
    page(folder).write(tmp_path / "store")
    assert state() == before
