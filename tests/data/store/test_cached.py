"""Token stores in the cache."""

import os

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import HoldoutDocuments
from lmx.data.corpus.text import Text
from lmx.data.store.build import open_cached_store
from lmx.data.store.store import MANIFEST_FILE, STARTS_FILE, format_shard_name
from lmx.data.tokenizer.base import ByteTokenizer, CharTokenizer

TEXTS = [f"document {number}: ä\n" * (number % 5 + 1) for number in range(30)]


@pytest.fixture
def corpus(tmp_path, write) -> Text:
    for number, text in enumerate(TEXTS):
        write(f"texts/{number:02}.txt", text)
    return Text(path=f"{tmp_path / 'texts'}", holdout=HoldoutDocuments(fraction=0.2))


@pytest.mark.parametrize("config", [ByteTokenizer(), CharTokenizer()], ids=str)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_store_has_every_document_between_bos_and_eos(corpus, config, split):
    tokenizer = config.open(corpus)
    store = open_cached_store(corpus, tokenizer, split)
    parts = np.split(store.read(0, store.size), store.starts[1:-1])
    texts = [text for _, text in corpus.read_nonempty(split)]
    assert [tokenizer.decode(part) for part in parts] == texts
    if tokenizer.bos is not None:
        ends = {(part[0], part[-1]) for part in parts}
        assert ends == {(tokenizer.bos, tokenizer.eos)}
    assert store.bytes == sum(len(text.encode()) for text in texts)
    assert store.starts[-1] == store.size


def test_a_store_is_built_once(corpus, cache):
    def read_times():
        return {path: path.stat().st_mtime_ns for path in cache.rglob("*")}

    open_cached_store(corpus, ByteTokenizer().open(corpus), "train")
    before = read_times()
    open_cached_store(corpus, ByteTokenizer().open(corpus), "train")
    assert read_times() == before


def test_each_text_split_and_tokenizer_has_its_own_store(corpus, cache, write):
    for config in (ByteTokenizer(), CharTokenizer()):
        for split in ("train", "validation"):
            open_cached_store(corpus, config.open(corpus), split)
    write("texts/00.txt", "other")
    open_cached_store(corpus, ByteTokenizer().open(corpus), "train")
    assert len(list((cache / "stores").iterdir())) == 5


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (format_shard_name(0), lambda path: os.truncate(path, 10)),
        (format_shard_name(0), flip_bit),
        (STARTS_FILE, os.unlink),
        (MANIFEST_FILE, lambda path: path.write_text('{"dtype": ')),
    ],
)
def test_a_damaged_store_is_rebuilt_with_a_warning(corpus, cache, name, damage, caplog):
    tokenizer = ByteTokenizer().open(corpus)
    tokens = open_cached_store(corpus, tokenizer, "train").parts[0].copy()
    (path,) = (cache / "stores").iterdir()
    damage(path / name)
    assert (open_cached_store(corpus, tokenizer, "train").parts[0] == tokens).all()
    assert "rebuilding" in caplog.text
    assert list((cache / "stores").iterdir()) == [path]


def test_a_failed_build_leaves_nothing(corpus, cache, write):
    tokenizer = CharTokenizer().open(corpus)
    write("texts/99.txt", "€")
    with pytest.raises(ConfigError, match="U\\+20AC"):
        open_cached_store(corpus, tokenizer, "train")
    assert list((cache / "stores").iterdir()) == []


def test_concurrent_processes_build_the_same_store(corpus, cache, at_once):
    store = f"open_cached_store({corpus}, ByteTokenizer().open({corpus}), 'train')"
    digests = at_once(f"print(hashlib.sha256({store}.parts[0]).hexdigest())")
    assert len(set(digests)) == 1
    assert len(list((cache / "stores").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_refused(corpus, monkeypatch, write):
    monkeypatch.setenv("LMX_CACHE", write("file", "") + "/below")
    with pytest.raises(ConfigError, match="set LMX_CACHE to a writable folder"):
        open_cached_store(corpus, ByteTokenizer().open(corpus), "train")
