"""Statistics of a token store, compared with loops over its documents."""

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.corpus.text import Text
from lmx.data.store.stats import (
    compute_autocorrelation,
    compute_stats,
    find_row_sources,
    make_length_bins,
    plot_lengths,
)
from lmx.data.store.store import load_store_tokenizer, open_store
from lmx.data.tokenizer.base import CharTokenizer
from tests.data.store.conftest import ALL, make_config, to_lines


@pytest.fixture
def folder(tmp_path, write):
    """Two sources, one of them extended."""

    def write_corpus(name: str, count: int) -> Text:
        texts = (f"{name} {number} " * (number % 11 + 1) for number in range(count))
        write(f"{name}/{count}.jsonl", to_lines(*texts))
        return Text(path=f"{tmp_path / name}", holdout=ALL, suffixes=(".jsonl",))

    for count in (90, 40):
        sources = {"é": write_corpus("é", count), "b": write_corpus("b", 70)}
        config = make_config("", sources=sources, shard_bytes=2000)
        config.write(tmp_path / "store")
    return tmp_path / "store"


def test_numbers_are_those_of_loops(folder):
    store, stats = open_store(folder), compute_stats(folder, sequence_length=64)
    sizes = [len(store.read_document(number)) for number in range(store.documents)]
    assert (stats["documents"], stats["tokens"]) == (200, sum(sizes))
    assert stats["lengths"]["min"] == min(sizes)
    assert stats["lengths"]["max"] == max(sizes)
    assert stats["lengths"]["mean"] == pytest.approx(sum(sizes) / 200)
    assert stats["lengths"]["median"] == pytest.approx(np.median(sizes))
    for name, count in (("é", 130), ("b", 70)):
        tokens = sum(sizes[n] for numbers in store.sources[name] for n in numbers)
        source = stats["sources"][name]
        assert (source["documents"], source["tokens"]) == (count, tokens)
        assert source["bytes"] == tokens - 2 * count  # BOS and EOS have no bytes
        assert source["share"] == pytest.approx(tokens / sum(sizes))
    for sample in stats["samples"]:
        tokens = store.read_document(sample["document"])
        text = load_store_tokenizer(folder).decode(tokens)
        assert sample["text"] == text[:300] and text[0] == sample["source"]


def test_a_row_has_the_source_of_its_first_token(folder):
    store, decode = open_store(folder), load_store_tokenizer(folder).decode
    names = list(store.sources)
    sources = [names.index(decode(store.read_document(n))[0]) for n in range(200)]
    by_token = np.repeat(sources, np.diff(store.starts))
    np.testing.assert_array_equal(find_row_sources(store, 50), by_token[::50])


@pytest.mark.parametrize("lag", [1, 3])
def test_the_autocorrelation_is_that_of_a_loop(lag):
    source = np.random.default_rng(0).choice(3, 200, p=[0.5, 0.3, 0.2]).repeat(2)
    pairs = [source[n] == source[n + lag] for n in range(len(source) - lag)]
    chance = sum(np.mean(source == one) ** 2 for one in range(3))
    expected = (np.mean(pairs) - chance) / (1 - chance)
    assert compute_autocorrelation(source, lag) == pytest.approx(expected)


def test_the_autocorrelation_separates_blocks_from_a_shuffle():
    blocks = np.arange(3).repeat(5000)
    shuffled = np.random.default_rng(0).permutation(blocks)
    assert compute_autocorrelation(blocks, 1) > 0.99
    assert abs(compute_autocorrelation(shuffled, 1)) < 4 * len(blocks) ** -0.5
    assert compute_autocorrelation(np.zeros(9, np.int64), 1) == 0


@pytest.mark.parametrize("sizes", [[1], [7, 7], [2, 3, 900, 100_000]])
def test_every_length_is_in_a_bin_of_the_histogram(sizes):
    edges = make_length_bins(np.array(sizes))
    assert np.histogram(sizes, edges)[0].sum() == len(sizes)
    assert len(edges) <= 61


def test_the_histogram_of_lengths_is_a_png(folder, tmp_path):
    plot_lengths(folder, tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_a_tokenizer_that_changed_after_the_build_is_refused(folder):
    corpus = Text(path=f"{folder.parent}/b", suffixes=(".jsonl",))
    CharTokenizer().open(corpus).save(folder)
    with pytest.raises(ConfigError, match="tokenizer in .* is not the one its tokens"):
        compute_stats(folder)
