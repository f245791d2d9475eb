"""What the building of a token store refuses, or counts."""

import fcntl
import os
from dataclasses import dataclass, replace
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
from lmx.data.tokenizer.base import CharTokenizer
from lmx.data.tokenizer.pretrained import load_tokenizer
from lmx.data.tokenizer.sentencepiece import SentencePiece
from tests.data.store.conftest import ALL, make_config, read_texts, to_lines

NIGHTLY = pytest.mark.nightly


def check_refused(config: BuildTokenStore, folder: Path, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.write(folder)


def test_a_file_that_changed_after_the_build_is_refused(folder, tmp_path):
    make_config(folder).write(tmp_path / "store")
    with (folder / "b.jsonl").open("a") as file:
        file.write(to_lines("more"))
    message = "'b.jsonl' of source 'a' is in the store and has changed"
    check_refused(make_config(folder), tmp_path / "store", message)


@pytest.fixture
def stopped(folder, tmp_path, monkeypatch) -> Path:
    """The folder of a build that was stopped before its shards were committed."""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lmx.data.store.build.commit", stop)
    with pytest.raises(KeyboardInterrupt):
        make_config(folder, shard_bytes=100).write(tmp_path / "store")
    monkeypatch.undo()
    monkeypatch.setenv("LMX_CACHE", f"{tmp_path / 'cache'}")
    return tmp_path / "store"


def test_a_file_that_changed_during_the_build_is_refused(folder, stopped):
    os.utime(folder / "b.jsonl", (0, 0))
    message = "'a' has changed since this build began, at 'b.jsonl'"
    check_refused(make_config(folder, shard_bytes=100), stopped, message)
    message = "started with shard_bytes 100, now it is 99"
    check_refused(make_config(folder, shard_bytes=99), stopped, message)


def test_a_file_removed_during_the_build_is_refused(folder, stopped):
    (folder / "z.txt").unlink()
    message = "'a' has changed since this build began, at 'z.txt'"
    check_refused(make_config(folder, shard_bytes=100), stopped, message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokenizer": CharTokenizer()}, "with tokenizer [0-9a-f]{64}, now it is"),
        ({"filters": (LengthFilter(),)}, r"with filters \[\], now it is .*LengthF"),
        ({"split": "validation"}, "with split train, now it is validation"),
    ],
)
def test_a_store_is_not_extended_with_other_settings(
    folder, tmp_path, changed, message
):
    make_config(folder).write(tmp_path / "store")
    (folder / "new.txt").write_text("new")
    check_refused(make_config(folder, **changed), tmp_path / "store", message)


def test_a_source_with_other_settings_is_refused(folder, tmp_path):
    make_config(folder).write(tmp_path / "store")
    corpus = Text(path=f"{folder}", holdout=ALL, suffixes=(".txt",))
    message = r"with source 'a' .*Text.*, now it is .*Text.*: restore it"
    config = make_config("", sources={"a": corpus})
    check_refused(config, tmp_path / "store", message)


def test_a_trained_tokenizer_is_stored_with_its_tokens(tmp_path, write):
    texts = (f"some words {n} and more" for n in range(300))
    path = write("a.jsonl", to_lines(*texts))
    config = make_config(path, tokenizer=SentencePiece(vocab=300))
    store = config.write(tmp_path / "store")
    tokenizer = load_tokenizer(tmp_path / "store")
    assert tokenizer.digest == store.fingerprint["tokenizer"]
    assert tokenizer.decode(store.read_document(7)) == "some words 7 and more"


def test_empty_documents_are_counted_and_refused_above_the_limit(tmp_path, write):
    path = write("a.jsonl", to_lines("a", "", "b", "", "c") + "\n \n")
    check_refused(
        make_config(path),
        tmp_path / "store",
        r"2 of 5 documents are empty, more than BuildTokenStore.max_empty_fraction ="
        r" 0.1 allows(.|\n)*2 empty text: text: byte 14; text: byte 41",
    )
    store = make_config(path, max_empty_fraction=0.4).write(tmp_path / "store")
    assert read_texts(store) == ["a", "b", "c"]
    rejected = read_manifest(tmp_path / "store")["excluded"]["a"]["rejected"]
    locations = ["text: byte 14", "text: byte 41"]
    entry = {"kind": "empty", "count": 2, "locations": locations}
    assert rejected == {"empty text": entry}


INVALID = b'{"text": "\xff"}\n{"text": 1}\n{"text": "\xfe"}\n{}\nno\n'


def test_invalid_documents_are_refused_or_counted_by_reason(tmp_path, write):
    valid = to_lines(*map(str, range(15))).encode()
    path = write("a.jsonl", valid + INVALID)
    message = rf"a\.jsonl: not UTF-8 \(0xff\) at byte {len(valid) + 10}"
    check_refused(make_config(path), tmp_path / "store", message)
    message = (
        "5 of 20 documents are invalid, more than"
        " BuildTokenStore.max_invalid_fraction = 0.2 allows"
    )
    config = make_config(path, max_invalid_fraction=0.2)
    check_refused(config, tmp_path / "store", message)
    config = replace(config, max_invalid_fraction=0.25)
    store = config.write(tmp_path / "store")
    assert read_texts(store) == [f"{number}" for number in range(15)]
    rejected = read_manifest(tmp_path / "store")["excluded"]["a"]["rejected"]
    assert {reason: entry["count"] for reason, entry in rejected.items()} == {
        "no field 'text'": 1,
        "int instead of text in 'text'": 1,
        "not JSON": 1,
        "not UTF-8": 2,
    }


def test_only_the_first_locations_are_recorded(tmp_path, write):
    path = write("a.jsonl", to_lines("a", *[""] * 50))
    config = make_config(path, max_empty_fraction=1.0, shard_bytes=60)
    config.write(tmp_path / "store")
    rejected = read_manifest(tmp_path / "store")["excluded"]["a"]["rejected"]
    assert rejected["empty text"]["count"] == 50
    locations = [f"text: byte {14 + 13 * n}" for n in range(5)]
    assert rejected["empty text"]["locations"] == locations


def test_a_long_document_is_encoded_in_parts_and_loses_nothing(
    tmp_path, write, monkeypatch
):
    monkeypatch.setattr(shard_writer, "ENCODE_CHARS", 50)
    texts = ["ab\n" * 60, "a b " * 60, "x" * 333, "é\n\n" + "y z" * 99]
    config = make_config(
        write("a.jsonl", to_lines(*texts)), tokenizer=SentencePiece(vocab=270)
    )
    store = config.write(tmp_path / "store")
    decode = load_tokenizer(tmp_path / "store").decode
    assert [decode(store.read_document(n)) for n in range(4)] == texts


@pytest.mark.parametrize("words", [10**6, pytest.param(14 * 10**6, marks=NIGHTLY)])
def test_a_line_of_100_megabytes_is_a_document(tmp_path, words):
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        file.write(to_lines("first") + '{"text": "' + "word ä " * words + '"}\n')
    assert path.stat().st_size > 7 * words
    store = make_config(path).write(tmp_path / "store")
    assert store.documents == 2
    expected = np.frombuffer("word ä ".encode(), np.uint8)
    body = store.read_document(1)[1:-1].reshape(words, len(expected))
    assert (body == expected).all()


def test_a_line_that_is_too_long_is_refused_or_skipped(tmp_path, write, monkeypatch):
    monkeypatch.setattr("lmx.data.corpus.text.MAX_DOCUMENT_BYTES", 40)
    path = write("a.jsonl", to_lines("a", "b" * 99, "c"))
    message = r"a line of more than 40 bytes at byte 14: split it\."
    check_refused(make_config(path), tmp_path / "store", message)
    store = make_config(path, max_invalid_fraction=0.5).write(tmp_path / "store")
    assert read_texts(store) == ["a", "c"]


@pytest.mark.parametrize("size", [11, 30, 64, 1000])
def test_lines_are_divided_at_any_byte_and_each_is_read_once(tmp_path, write, size):
    items = ["", "a" * 90, "b", "ccc", "é" * 7, "d" * 31]
    path = write("a.jsonl", "\n" + to_lines(*items) + to_lines("end").rstrip())
    config = make_config(path, shard_bytes=size, max_empty_fraction=1.0)
    assert read_texts(config.write(tmp_path / "store")) == [*items[1:], "end"]


def test_a_missing_source_is_refused_with_the_nearest_name(folder, tmp_path):
    message = rf"there is no {folder}s; did you mean '{folder.name}'\?"
    check_refused(make_config(f"{folder}s"), tmp_path / "store", message)


def test_a_source_without_documents_is_refused(tmp_path, write):
    path = write("a.jsonl", to_lines("a", "b"))
    config = make_config(path, filters=(LengthFilter(min_chars=9),))
    message = "source 'a' has no documents in the train split: 2 fewer than 9 char"
    check_refused(config, tmp_path / "store", message)
    message = "source 'a' has no documents in the train split: it is empty"
    check_refused(make_config(write("b.jsonl", "")), tmp_path / "other", message)


def test_a_folder_with_other_files_is_refused(folder):
    check_refused(make_config(folder), folder, "is not empty and not a token store")


def test_two_builds_do_not_share_a_folder(folder, tmp_path):
    (tmp_path / "store").mkdir()
    handle = os.open(tmp_path / "store", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    message = "is being built by another process"
    check_refused(make_config(folder), tmp_path / "store", message)
    os.close(handle)
    make_config(folder).write(tmp_path / "store")


def test_a_refusal_in_a_worker_has_the_same_message(tmp_path, write):
    for name in "ab":
        write(f"texts/{name}.jsonl", b'{"text": "\xff"}\n')
    pool = ProcessPool(workers=2)
    config = make_config(tmp_path / "texts", shard_bytes=1, executor=pool)
    message = r"\.jsonl: not UTF-8 \(0xff\) at byte 10"
    check_refused(config, tmp_path / "store", message)


@configurable
@dataclass(frozen=True, kw_only=True)
class ExitingFilter(Filter):
    """Ends the process that filters a document."""

    status: int

    def __call__(self, document: Document) -> Document | str:
        os._exit(self.status)


@configurable
@dataclass(frozen=True, kw_only=True)
class FailingFilter(Filter):
    """Raises an error that is not a refusal."""

    def __call__(self, document: Document) -> Document | str:
        raise KeyError(document.name)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (ExitingFilter(status=9), "ended with exit code 9: if memory"),
        (FailingFilter(), "KeyError: 'a"),
    ],
)
def test_a_failed_worker_ends_the_build(folder, tmp_path, rule, message):
    pool = ProcessPool(workers=2)
    config = make_config(folder, shard_bytes=999, filters=(rule,), executor=pool)
    with pytest.raises(WorkerError, match=message):
        config.write(tmp_path / "store")


@dataclass(frozen=True)
class IndivisibleCorpus(Corpus):
    """A corpus of one span."""

    def read_span(self, span, split):
        yield from (Document("a", f"{split} a"), Document("b", "b"))


def test_an_indivisible_corpus_is_one_shard(tmp_path):
    config = make_config("", sources={"two": IndivisibleCorpus()})
    assert read_texts(config.write(tmp_path / "store")) == ["train a", "b"]


def test_invalid_settings_are_refused_at_once():
    with pytest.raises(ConfigError, match="BuildTokenStore.sources is {}: it must be"):
        make_config("", sources={})
    with pytest.raises(ConfigError, match="max_chars is 2: .* at least min_chars, 3"):
        LengthFilter(min_chars=3, max_chars=2)
