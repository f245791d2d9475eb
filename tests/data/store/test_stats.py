"""What is said of a store, against plain loops over its documents."""

import json

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import HoldoutDocuments
from lmx.data.corpus.text import Text
from lmx.data.store.build import BuildTokenStore
from lmx.data.store.executor import ProcessPool
from lmx.data.store.stats import (
    StoreStats,
    compute_autocorrelation,
    find_row_sources,
    make_length_bins,
    plot_lengths,
)
from lmx.data.store.store import load_store_tokenizer, open_store
from lmx.data.tokenizer.base import ByteTokenizer, CharTokenizer


@pytest.fixture
def folder(tmp_path, write):
    """Two sources, one of them appended to."""

    def corpus(name: str, count: int) -> Text:
        texts = [f"{name} {number} " * (number % 11 + 1) for number in range(count)]
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        path = write(f"{name}/{count}.jsonl", rows)
        path = path.removesuffix(f"/{count}.jsonl")
        rule = HoldoutDocuments(fraction=0.0)
        return Text(path=path, holdout=rule, suffixes=(".jsonl",))

    for count in (90, 40):
        sources = {"é": corpus("é", count), "b": corpus("b", 70)}
        engine = ProcessPool(workers=1)
        build = BuildTokenStore(
            sources=sources,
            tokenizer=ByteTokenizer(),
            shard_bytes=2000,
            executor=engine,
        )
        build.write(tmp_path / "store")
    return tmp_path / "store"


def test_numbers_are_those_of_plain_loops(folder):
    store, told = open_store(folder), StoreStats(sequence_length=64)(folder)
    sizes = [len(store.read_document(number)) for number in range(store.documents)]
    assert (told["documents"], told["tokens"]) == (200, sum(sizes))
    assert told["lengths"]["least"] == min(sizes)
    assert told["lengths"]["most"] == max(sizes)
    assert told["lengths"]["mean"] == pytest.approx(sum(sizes) / 200)
    assert told["lengths"]["median"] == pytest.approx(np.median(sizes))
    for name, count in (("é", 130), ("b", 70)):
        numbers = [n for one in store.sources[name] for n in one]
        tokens = sum(sizes[number] for number in numbers)
        found = told["sources"][name]
        assert (found["documents"], found["tokens"]) == (count, tokens)
        assert found["bytes"] == tokens - 2 * count  # begin and end stand for none
        assert found["share"] == pytest.approx(tokens / sum(sizes))
    for one in told["samples"]:
        said = load_store_tokenizer(folder).decode(store.read_document(one["document"]))
        assert one["text"] == said[:300] and one["text"][0] == one["source"]


def test_rows_are_of_the_source_of_their_first_token(folder):
    store = open_store(folder)
    names = list(store.sources)
    said = [
        load_store_tokenizer(folder).decode(store.read_document(n))[0]
        for n in range(200)
    ]
    by_token = np.repeat([names.index(name) for name in said], np.diff(store.starts))
    np.testing.assert_array_equal(find_row_sources(store, 50), by_token[::50])


@pytest.mark.parametrize("lag", [1, 3])
def test_the_autocorrelation_is_that_of_a_loop(lag):
    source = np.random.default_rng(0).choice(3, 200, p=[0.5, 0.3, 0.2]).repeat(2)
    pairs = [source[n] == source[n + lag] for n in range(len(source) - lag)]
    chance = sum(np.mean(source == one) ** 2 for one in range(3))
    wanted = (np.mean(pairs) - chance) / (1 - chance)
    assert compute_autocorrelation(source, lag) == pytest.approx(wanted)


def test_blocks_are_told_from_what_is_mixed():
    blocks = np.arange(3).repeat(5000)
    mixed = np.random.default_rng(0).permutation(blocks)
    assert compute_autocorrelation(blocks, 1) > 0.99
    assert abs(compute_autocorrelation(mixed, 1)) < 4 * len(mixed) ** -0.5
    assert compute_autocorrelation(np.zeros(9, np.int64), 1) == 0


@pytest.mark.parametrize("sizes", [[1], [7, 7], [2, 3, 900, 100_000]])
def test_every_length_is_in_a_bin_of_the_picture(sizes):
    edges = make_length_bins(np.array(sizes))
    assert np.histogram(sizes, edges)[0].sum() == len(sizes)
    assert len(edges) <= 61


def test_the_lengths_are_drawn(folder, tmp_path):
    plot_lengths(folder, tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_a_tokenizer_that_changed_after_the_build_is_refused(folder):
    corpus = Text(path=f"{folder.parent}/b", suffixes=(".jsonl",))
    CharTokenizer().open(corpus).save(folder)
    with pytest.raises(ConfigError, match="tokenizer in .* is not the one its tokens"):
        StoreStats()(folder)
