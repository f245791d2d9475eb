"""What the building of a store must refuse, or count."""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lmx.config.registry import ConfigError, configurable
from lmx.data.corpus.corpus import Corpus, Document
from lmx.data.corpus.text import Text
from lmx.data.curate.filter import Filter, LengthFilter
from lmx.data.store import shard_writer
from lmx.data.store.build import BuildTokenStore
from lmx.data.store.executor import ProcessPool, WorkerError
from lmx.data.store.store import read_manifest
from lmx.data.tokenizer.base import CharTokenizer, load
from lmx.data.tokenizer.sentencepiece import SentencePiece
from tests.data.store.conftest import ALL, lines, page, texts


def refused(build: BuildTokenStore, folder: Path, words: str) -> None:
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

    monkeypatch.setattr("lmx.data.store.build.build_shards", stop)
    with pytest.raises(KeyboardInterrupt):
        page(folder, shard_bytes=100).write(tmp_path / "store")
    monkeypatch.undo()
    os.utime(folder / "b.jsonl", (0, 0))
    words = "'a' has changed since this build began, at 'b.jsonl'"
    refused(page(folder, shard_bytes=100), tmp_path / "store", words)
    refused(
        page(folder, shard_bytes=99),
        tmp_path / "store",
        "begun with another shard, 100",
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"tokenizer": CharTokenizer()},
            "with another tokenizer, [0-9a-f]{64}, and this",
        ),
        (
            {"filters": (LengthFilter(),)},
            r"another filters, \[\], and this is .*ByLength",
        ),
        ({"split": "validation"}, "another split, train, and this is validation"),
    ],
)
def test_a_store_takes_nothing_that_is_made_otherwise(folder, tmp_path, changed, words):
    page(folder).write(tmp_path / "store")
    refused(page(folder, **changed), tmp_path / "store", words)


def test_a_source_that_is_read_otherwise_is_refused(folder, tmp_path):
    page(folder).write(tmp_path / "store")
    corpus = Text(path=f"{folder}", holdout=ALL, suffixes=(".txt",))
    words = r"source 'a' as .*jsonl.*, and this is .*: give it a name of its own"
    refused(page("", sources={"a": corpus}), tmp_path / "store", words)


def test_a_tokenizer_that_is_learned_lies_beside_its_tokens(tmp_path, write):
    path = write("a.jsonl", lines(*(f"some words {n} and more" for n in range(300))))
    store = page(path, tokenizer=SentencePiece(vocab=300)).write(tmp_path / "store")
    codec = load(tmp_path / "store")
    assert codec.digest == store.fingerprint["tokenizer"]
    assert codec.decode(store.read_document(7)) == "some words 7 and more"


def test_empty_documents_are_counted_and_refused_above_the_limit(tmp_path, write):
    path = write("a.jsonl", lines("a", "", "b", "", "c") + "\n \n")
    refused(
        page(path),
        tmp_path / "store",
        r"2 of 5 documents are empty, more than BuildTokenStore.max_empty_fraction = 0.1 allows"
        r"(.|\n)*2 empty text: text: byte 14; text: byte 41",
    )
    store = page(path, max_empty_fraction=0.4).write(tmp_path / "store")
    assert texts(store) == ["a", "b", "c"]
    left = read_manifest(tmp_path / "store")["left_out"]["a"]["set_aside"]
    first = ["text: byte 14", "text: byte 41"]
    assert left == {"empty text": {"kind": "empty", "count": 2, "first": first}}


BROKEN = b'{"text": "\xff"}\n{"text": 1}\n{"text": "\xfe"}\n{}\nno\n'


def test_broken_documents_are_refused_or_counted_by_reason(tmp_path, write):
    good = lines(*map(str, range(15))).encode()
    path = write("a.jsonl", good + BROKEN)
    where = rf"a\.jsonl: not UTF-8 at byte {len(good) + 10} \(0xff\)"
    refused(page(path), tmp_path / "store", where)
    few = "5 of 20 documents are broken, more than BuildTokenStore.max_invalid_fraction = 0.2 allows"
    refused(page(path, max_invalid_fraction=0.2), tmp_path / "store", few)
    store = page(path, max_invalid_fraction=0.25).write(tmp_path / "store")
    assert texts(store) == [f"{number}" for number in range(15)]
    left = read_manifest(tmp_path / "store")["left_out"]["a"]["set_aside"]
    assert {reason: found["count"] for reason, found in left.items()} == {
        "no field 'text'": 1,
        "no text but int in 'text'": 1,
        "not JSON": 1,
        "not UTF-8": 2,
    }


def test_no_more_places_are_kept_than_a_person_looks_at(tmp_path, write):
    path = write("a.jsonl", lines("a", *[""] * 50))
    page(path, max_empty_fraction=1.0, shard_bytes=60).write(tmp_path / "store")
    found = read_manifest(tmp_path / "store")["left_out"]["a"]["set_aside"][
        "empty text"
    ]
    assert found["count"] == 50
    assert found["first"] == [f"text: byte {14 + 13 * n}" for n in range(5)]


def test_a_long_document_is_encoded_in_stretches_and_loses_nothing(
    tmp_path, write, monkeypatch
):
    monkeypatch.setattr(shard_writer, "ENCODE_CHARS", 50)
    long = ["ab\n" * 60, "a b " * 60, "x" * 333, "é\n\n" + "y z" * 99]
    path = write("a.jsonl", lines(*long))
    store = page(path, tokenizer=SentencePiece(vocab=270)).write(tmp_path / "store")
    codec = load(tmp_path / "store")
    assert [codec.decode(store.read_document(n)) for n in range(4)] == long


def test_a_line_of_100_megabytes_is_a_document(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        file.write(lines("first") + '{"text": "' + "word ä " * 14_000_000 + '"}\n')
    assert path.stat().st_size > 100 * 10**6
    store = page(path).write(tmp_path / "store")
    assert store.documents == 2
    wanted = np.frombuffer("word ä ".encode(), np.uint8)
    body = store.read_document(1)[1:-1].reshape(14_000_000, len(wanted))
    assert (body == wanted).all()


def test_a_line_that_is_too_long_is_refused_or_passed_over(
    tmp_path, write, monkeypatch
):
    monkeypatch.setattr("lmx.data.corpus.json_lines.MAX_DOCUMENT_BYTES", 40)
    path = write("a.jsonl", lines("a", "b" * 99, "c"))
    words = r"a line of more than 40 bytes at byte 14: part it\."
    refused(page(path), tmp_path / "store", words)
    assert texts(page(path, max_invalid_fraction=0.5).write(tmp_path / "store")) == [
        "a",
        "c",
    ]


@pytest.mark.parametrize("size", [11, 30, 64, 1000])
def test_lines_are_parted_at_any_byte_and_each_is_read_once(tmp_path, write, size):
    items = ["", "a" * 90, "b", "ccc", "é" * 7, "d" * 31]
    path = write("a.jsonl", "\n" + lines(*items) + lines("end").rstrip())
    build = page(path, shard_bytes=size, max_empty_fraction=1.0)
    assert texts(build.write(tmp_path / "store")) == [*items[1:], "end"]


def test_a_missing_source_is_refused_by_the_nearest_name(folder, tmp_path):
    words = rf"there is no {folder}s; did you mean {folder}\?"
    refused(page(f"{folder}s"), tmp_path / "store", words)


def test_a_source_that_comes_to_nothing_is_refused(tmp_path, write):
    path = write("a.jsonl", lines("a", "b"))
    none = page(path, filters=(LengthFilter(min_chars=9),))
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
    build = page(tmp_path / "texts", shard_bytes=1, executor=ProcessPool(workers=2))
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
    build = page(
        folder, shard_bytes=999, filters=(rule,), executor=ProcessPool(workers=2)
    )
    with pytest.raises(WorkerError, match=words):
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
        ({"sources": {}}, "BuildTokenStore.sources names no corpus"),
        ({"shard": 0}, "BuildTokenStore.shard_bytes is 0: at least 1 byte"),
        ({"broken": 1.5}, "BuildTokenStore.max_invalid_fraction is 1.5: 0 to 1"),
        ({"empty": -0.1}, "BuildTokenStore.max_empty_fraction is -0.1: 0 to 1"),
    ],
)
def test_what_cannot_be_built_is_refused_at_once(fields, words):
    with pytest.raises(ConfigError, match=words):
        page("", **fields)


def test_a_filter_and_an_engine_refuse_what_makes_no_sense():
    with pytest.raises(
        ConfigError, match="LengthFilter.min_chars is 3 and LengthFilter.max_chars 2"
    ):
        LengthFilter(min_chars=3, max_chars=2)
    with pytest.raises(ConfigError, match="ProcessPool.workers is 0: at least 1"):
        ProcessPool(workers=0)
