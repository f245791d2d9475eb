"""What the building of a store must keep, and what it must refuse."""

import fcntl
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from lmx.config.names import ConfigError, configurable
from lmx.data.corpora.corpus import ByDocument, Corpus, Document, Tail
from lmx.data.corpora.text import Text
from lmx.data.store import shard
from lmx.data.store.build import Build
from lmx.data.store.engine import LostError, Processes
from lmx.data.store.filter import ByLength, Filter
from lmx.data.store.store import MANIFEST, Store, manifest, open_folder, verify
from lmx.data.tokenizers.codec import ByteCodec, Bytes, Characters, load
from lmx.data.tokenizers.pieces import SentencePiece

ALL = ByDocument(fraction=0.0)
ONE = Processes(count=1)


def lines(*items: object) -> str:
    """Items as JSON objects by the line."""
    return "".join(json.dumps({"text": item}) + "\n" for item in items)


def texts(store: Store) -> list[str]:
    """Every document of a store of bytes."""
    codec = ByteCodec()
    return [codec.decode(store.document(number)) for number in range(store.documents)]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below the folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {f"{path.relative_to(folder)}": path.read_bytes() for path in files}


def page(path: str | Path, **fields) -> Build:
    """A build of one source of text, in this process."""
    corpus = Text(path=f"{path}", split=ALL, suffixes=(".jsonl", ".txt"))
    given = {"sources": {"a": corpus}, "tokenizer": Bytes(), "engine": ONE, **fields}
    return Build(**given)


@pytest.fixture
def folder(tmp_path, write) -> Path:
    """Files of lines, and of one text."""
    for name in "bca":
        items = [f"{name}{number} ä" * (number % 7 + 1) for number in range(40)]
        write(f"texts/{name}.jsonl", lines(*items))
    write("texts/z.txt", "the last")
    return tmp_path / "texts"


@pytest.mark.parametrize("size", [400, 3000, 10**9])
def test_a_store_has_every_document_in_order_whatever_its_shards(
    folder, tmp_path, size
):
    build = page(folder, shard=size)
    store = build.write(tmp_path / "store")
    wanted = [text for _, text in build.sources["a"].documents("train")]
    assert texts(store) == wanted and len(wanted) == 121
    assert store.bytes == sum(len(text.encode()) for text in wanted)
    assert store.sources == {"a": (range(121),)}
    assert list(verify(tmp_path / "store")) == []
    shards = manifest(tmp_path / "store")["shards"]
    assert len(shards) == {400: 16, 3000: 3, 10**9: 1}[size]


def test_processes_make_the_bytes_of_one(folder, tmp_path):
    page(folder, shard=900).write(tmp_path / "one")
    page(folder, shard=900, engine=Processes(count=2)).write(tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_splits_share_no_document_and_lose_none(folder, tmp_path):
    corpus = Text(
        path=f"{folder}", split=ByDocument(fraction=0.3), suffixes=(".jsonl",)
    )
    build = page(folder, sources={"a": corpus}, shard=3000)
    train = texts(build.write(tmp_path / "train"))
    held = texts(replace(build, split="validation").write(tmp_path / "held"))
    assert sorted(train + held) == sorted(
        text for split in ("train", "validation") for _, text in corpus.read(split)
    )
    assert len(train) + len(held) == 120 and 20 < len(held) < 60


def test_a_tail_is_cut_from_each_document_in_every_part(tmp_path, write):
    corpus = Text(path=write("a.jsonl", lines("0123456789", "ab" * 10)), split=Tail())
    build = page("", sources={"a": corpus}, split="validation", shard=20)
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
    filters = (ByLength(least=2), Shout(), ByLength(least=0, most=3))
    store = page(path, filters=filters).write(tmp_path / "store")
    assert texts(store) == ["BBB", "B"]
    assert manifest(tmp_path / "store")["left_out"]["a"]["filtered"] == reasons


def test_sources_stand_by_themselves_in_the_order_of_the_page(tmp_path, write):
    sources = {
        name: Text(path=write(f"{name}.jsonl", lines(*(name * 20))), split=ALL)
        for name in "zab"
    }
    store = page("", sources=sources, shard=100).write(tmp_path / "store")
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
    other = Text(path=write("c.jsonl", lines("c")), split=ALL)
    both = page("", sources={"other": other, **build.sources})
    store = both.write(tmp_path / "store")
    assert texts(old) == ["b"] and texts(store) == ["b", "c", "a"]
    assert store.sources == {"a": (range(1), range(2, 3)), "other": (range(1, 2),)}
    assert list(verify(tmp_path / "store")) == []
    after = content(tmp_path / "store")
    for name in before.keys() - {MANIFEST}:
        assert after[name].startswith(before[name])


def test_a_store_is_whole_for_readers_while_more_is_appended(
    tmp_path, write, monkeypatch
):
    write("texts/a.jsonl", lines("a"))
    page(tmp_path / "texts").write(tmp_path / "store")
    write("texts/b.jsonl", lines("b"))

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lmx.data.store.finish.write_whole", stop)  # the manifest
    with pytest.raises(KeyboardInterrupt):
        page(tmp_path / "texts").write(tmp_path / "store")
    assert texts(open_folder(tmp_path / "store")) == ["a"]
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


def refused(build: Build, folder: Path, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build.write(folder)


def test_a_file_that_changed_after_the_build_is_refused(folder, tmp_path, write):
    page(folder).write(tmp_path / "store")
    with (folder / "b.jsonl").open("a") as file:
        file.write(lines("more"))
    refused(page(folder), tmp_path / "store", "'b.jsonl' of source 'a' is in the store")


def test_a_file_that_changed_during_the_build_is_refused(folder, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lmx.data.store.build.shards", stop)
    with pytest.raises(KeyboardInterrupt):
        page(folder, shard=100).write(tmp_path / "store")
    monkeypatch.undo()
    os.utime(folder / "b.jsonl", (0, 0))
    words = "'a' has changed since this build began, at 'b.jsonl'"
    refused(page(folder, shard=100), tmp_path / "store", words)
    refused(page(folder, shard=99), tmp_path / "store", "begun with another shard, 100")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tokenizer": Characters()}, "with another tokenizer, [0-9a-f]{64}, and this"),
        ({"filters": (ByLength(),)}, r"another filters, \[\], and this is .*ByLength"),
        ({"split": "validation"}, "another split, train, and this is validation"),
    ],
)
def test_a_store_takes_nothing_that_is_made_otherwise(folder, tmp_path, changed, words):
    page(folder).write(tmp_path / "store")
    refused(page(folder, **changed), tmp_path / "store", words)


def test_a_source_that_is_read_otherwise_is_refused(folder, tmp_path):
    page(folder).write(tmp_path / "store")
    corpus = Text(path=f"{folder}", split=ALL, suffixes=(".txt",))
    words = r"source 'a' as .*jsonl.*, and this is .*: give it a name of its own"
    refused(page("", sources={"a": corpus}), tmp_path / "store", words)


def test_a_tokenizer_that_is_learned_lies_beside_its_tokens(tmp_path, write):
    path = write("a.jsonl", lines(*(f"some words {n} and more" for n in range(300))))
    store = page(path, tokenizer=SentencePiece(vocab=300)).write(tmp_path / "store")
    codec = load(tmp_path / "store")
    assert codec.digest == store.fingerprint["tokenizer"]
    assert codec.decode(store.document(7)) == "some words 7 and more"


def test_empty_documents_are_counted_and_refused_above_the_limit(tmp_path, write):
    path = write("a.jsonl", lines("a", "", "b", "", "c") + "\n \n")
    refused(
        page(path),
        tmp_path / "store",
        r"2 of 5 documents are empty, more than Build.empty = 0.1 allows"
        r"(.|\n)*2 empty text: text: byte 14; text: byte 41",
    )
    store = page(path, empty=0.4).write(tmp_path / "store")
    assert texts(store) == ["a", "b", "c"]
    left = manifest(tmp_path / "store")["left_out"]["a"]["set_aside"]
    first = ["text: byte 14", "text: byte 41"]
    assert left == {"empty text": {"kind": "empty", "count": 2, "first": first}}


BROKEN = b'{"text": "\xff"}\n{"text": 1}\n{"text": "\xfe"}\n{}\nno\n'


def test_broken_documents_are_refused_or_counted_by_reason(tmp_path, write):
    good = lines(*map(str, range(15))).encode()
    path = write("a.jsonl", good + BROKEN)
    where = rf"a\.jsonl: not UTF-8 at byte {len(good) + 10} \(0xff\)"
    refused(page(path), tmp_path / "store", where)
    few = "5 of 20 documents are broken, more than Build.broken = 0.2 allows"
    refused(page(path, broken=0.2), tmp_path / "store", few)
    store = page(path, broken=0.25).write(tmp_path / "store")
    assert texts(store) == [f"{number}" for number in range(15)]
    left = manifest(tmp_path / "store")["left_out"]["a"]["set_aside"]
    assert {reason: found["count"] for reason, found in left.items()} == {
        "no field 'text'": 1,
        "no text but int in 'text'": 1,
        "not JSON": 1,
        "not UTF-8": 2,
    }


def test_no_more_places_are_kept_than_a_person_looks_at(tmp_path, write):
    path = write("a.jsonl", lines("a", *[""] * 50))
    page(path, empty=1.0, shard=60).write(tmp_path / "store")
    found = manifest(tmp_path / "store")["left_out"]["a"]["set_aside"]["empty text"]
    assert found["count"] == 50
    assert found["first"] == [f"text: byte {14 + 13 * n}" for n in range(5)]


def test_a_long_document_is_encoded_in_stretches_and_loses_nothing(
    tmp_path, write, monkeypatch
):
    monkeypatch.setattr(shard, "STRETCH", 50)
    long = ["ab\n" * 60, "a b " * 60, "x" * 333, "é\n\n" + "y z" * 99]
    path = write("a.jsonl", lines(*long))
    store = page(path, tokenizer=SentencePiece(vocab=270)).write(tmp_path / "store")
    codec = load(tmp_path / "store")
    assert [codec.decode(store.document(n)) for n in range(4)] == long


def test_a_line_of_100_megabytes_is_a_document(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        file.write(lines("first") + '{"text": "' + "word ä " * 14_000_000 + '"}\n')
    assert path.stat().st_size > 100 * 10**6
    store = page(path).write(tmp_path / "store")
    assert store.documents == 2
    wanted = np.frombuffer("word ä ".encode(), np.uint8)
    body = store.document(1)[1:-1].reshape(14_000_000, len(wanted))
    assert (body == wanted).all()


def test_a_line_that_is_too_long_is_refused_or_passed_over(
    tmp_path, write, monkeypatch
):
    monkeypatch.setattr("lmx.data.corpora.lines.LONGEST", 40)
    path = write("a.jsonl", lines("a", "b" * 99, "c"))
    words = r"a line of more than 40 bytes at byte 14: part it\."
    refused(page(path), tmp_path / "store", words)
    assert texts(page(path, broken=0.5).write(tmp_path / "store")) == ["a", "c"]


@pytest.mark.parametrize("size", [11, 30, 64, 1000])
def test_lines_are_parted_at_any_byte_and_each_is_read_once(tmp_path, write, size):
    items = ["", "a" * 90, "b", "ccc", "é" * 7, "d" * 31]
    path = write("a.jsonl", "\n" + lines(*items) + lines("end").rstrip())
    build = page(path, shard=size, empty=1.0)
    assert texts(build.write(tmp_path / "store")) == [*items[1:], "end"]


def test_a_missing_source_is_refused_by_the_nearest_name(folder, tmp_path):
    words = rf"there is no {folder}s; did you mean {folder}\?"
    refused(page(f"{folder}s"), tmp_path / "store", words)


def test_a_source_that_comes_to_nothing_is_refused(tmp_path, write):
    path = write("a.jsonl", lines("a", "b"))
    none = page(path, filters=(ByLength(least=9),))
    words = "source 'a' has no document that was kept: 2 fewer than 9 characters"
    refused(none, tmp_path / "store", words)
    refused(page(write("b.jsonl", "")), tmp_path / "other", "train split of .* empty")


def test_a_folder_of_something_else_is_not_built_in(folder, tmp_path):
    refused(page(folder), folder, "holds something that is no token store")


def test_two_builders_do_not_meet_in_a_folder(folder, tmp_path):
    (tmp_path / "store").mkdir()
    handle = os.open(tmp_path / "store", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    refused(page(folder), tmp_path / "store", "is being built by another process")
    os.close(handle)
    page(folder).write(tmp_path / "store")


def test_a_refusal_in_a_process_is_told_as_in_this_one(tmp_path, write):
    for name in "ab":
        write(f"texts/{name}.jsonl", b'{"text": "\xff"}\n')
    build = page(tmp_path / "texts", shard=1, engine=Processes(count=2))
    refused(build, tmp_path / "store", r"\.jsonl: not UTF-8 at byte 10")


@configurable
@dataclass(frozen=True, kw_only=True)
class Fatal(Filter):
    """Ends the process that sees a document."""

    status: int

    def __call__(self, document: Document) -> Document | str:
        os._exit(self.status)


@configurable
@dataclass(frozen=True, kw_only=True)
class Wrong(Filter):
    """A fault of the one who wrote it."""

    def __call__(self, document: Document) -> Document | str:
        raise KeyError(document.name)


@pytest.mark.parametrize(
    ("rule", "words"),
    [(Fatal(status=9), "has ended with 9: perhaps memory"), (Wrong(), "KeyError: 'a")],
)
def test_a_process_that_dies_is_no_hang(folder, tmp_path, rule, words):
    build = page(folder, shard=999, filters=(rule,), engine=Processes(count=2))
    with pytest.raises(LostError, match=words):
        build.write(tmp_path / "store")


@dataclass(frozen=True)
class Two(Corpus):
    """A corpus that only knows how to be read whole."""

    def read(self, split):
        yield from (Document("a", f"{split} a"), Document("b", "b"))


def test_a_corpus_that_is_only_read_whole_is_one_shard(tmp_path):
    store = page("", sources={"two": Two()}).write(tmp_path / "store")
    assert texts(store) == ["train a", "b"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sources": {}}, "Build.sources names no corpus"),
        ({"shard": 0}, "Build.shard is 0: at least 1 byte"),
        ({"broken": 1.5}, "Build.broken is 1.5: 0 to 1"),
        ({"empty": -0.1}, "Build.empty is -0.1: 0 to 1"),
    ],
)
def test_what_cannot_be_built_is_refused_at_once(fields, words):
    with pytest.raises(ConfigError, match=words):
        page("", **fields)


def test_a_filter_and_an_engine_refuse_what_makes_no_sense():
    with pytest.raises(ConfigError, match="ByLength.least is 3 and ByLength.most 2"):
        ByLength(least=3, most=2)
    with pytest.raises(ConfigError, match="Processes.count is 0: at least 1"):
        Processes(count=0)
