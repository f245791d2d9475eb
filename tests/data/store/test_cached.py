"""What a tokenised split on disk must keep."""

import os

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import HoldoutDocuments
from lmx.data.corpus.text import Text
from lmx.data.store.cached import open_cached_store
from lmx.data.store.store import STARTS_FILE, format_shard_name
from lmx.data.tokenizer.base import ByteTokenizer, CharTokenizer

TEXTS = [f"document {number}: ä\n" * (number % 5 + 1) for number in range(30)]


@pytest.fixture
def corpus(tmp_path, write) -> Text:
    for number, text in enumerate(TEXTS):
        write(f"texts/{number:02}.txt", text)
    return Text(path=str(tmp_path / "texts"), holdout=HoldoutDocuments(fraction=0.2))


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer()], ids=str)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_store_holds_every_document_between_its_marks(corpus, tokenizer, split):
    codec = tokenizer.open(corpus)
    store = open_cached_store(corpus, codec, split)
    parts = np.split(store.read(0, store.size), store.starts[1:-1])
    texts = [text for _, text in corpus.documents(split)]
    assert [codec.decode(part) for part in parts] == texts
    if codec.begin is not None:
        assert {(part[0], part[-1]) for part in parts} == {(codec.begin, codec.end)}
    assert store.bytes == sum(len(text.encode()) for text in texts)
    assert store.starts[-1] == store.size


def test_a_store_is_made_once(corpus, cache):
    def times():
        return {path: path.stat().st_mtime_ns for path in cache.rglob("*")}

    open_cached_store(corpus, ByteTokenizer().open(corpus), "train")
    before = times()
    open_cached_store(corpus, ByteTokenizer().open(corpus), "train")
    assert times() == before


def test_another_text_split_or_tokenizer_has_another_store(corpus, cache, write):
    for tokenizer in (ByteTokenizer(), CharTokenizer()):
        for split in ("train", "validation"):
            open_cached_store(corpus, tokenizer.open(corpus), split)
    write("texts/00.txt", "other")
    open_cached_store(corpus, ByteTokenizer().open(corpus), "train")
    assert len(list((cache / "stores").iterdir())) == 5


def damage_end(path):
    os.truncate(path / format_shard_name(0), 10)


def damage_byte(path):
    content = bytearray((path / format_shard_name(0)).read_bytes())
    content[20] ^= 1
    (path / format_shard_name(0)).write_bytes(content)


def damage_starts(path):
    (path / STARTS_FILE).unlink()


def damage_manifest(path):
    (path / "manifest.json").write_text('{"kind": ')


@pytest.mark.parametrize(
    "damage", [damage_end, damage_byte, damage_starts, damage_manifest]
)
def test_a_damaged_store_is_made_anew_and_said(corpus, cache, damage, caplog):
    codec = ByteTokenizer().open(corpus)
    tokens = open_cached_store(corpus, codec, "train").parts[0].copy()
    (path,) = (cache / "stores").iterdir()
    damage(path)
    assert (open_cached_store(corpus, codec, "train").parts[0] == tokens).all()
    assert "made anew" in caplog.text
    assert list((cache / "stores").iterdir()) == [path]


def test_what_fails_half_way_leaves_nothing(corpus, cache, write):
    codec = CharTokenizer().open(corpus)
    write("texts/99.txt", "€")
    with pytest.raises(ConfigError, match="U\\+20AC"):
        open_cached_store(corpus, codec, "train")
    assert list((cache / "stores").iterdir()) == []


def test_processes_that_make_one_store_at_once_agree(corpus, cache, at_once):
    store = f"open_store({corpus}, Bytes().open({corpus}), 'train')"
    found = at_once(f"print(hashlib.sha256({store}.parts[0]).hexdigest())")
    assert len(set(found)) == 1
    assert len(list((cache / "stores").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_refused(corpus, monkeypatch, write):
    monkeypatch.setenv("LMX_CACHE", write("file", "") + "/below")
    with pytest.raises(ConfigError, match="set LMX_CACHE to a folder that can be"):
        open_cached_store(corpus, ByteTokenizer().open(corpus), "train")
