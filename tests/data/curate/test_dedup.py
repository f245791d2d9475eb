"""Removal of duplicates, compared with looking at every pair."""

import functools
import random

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.curate.dedup import (
    Dedup,
    MinHash,
    hash_ngram_set,
    hash_ngrams,
    hash_words,
    jaccard_index,
    split_words,
)
from tests.data.curate.conftest import read_documents

WORDS = [f"word{n}" for n in range(2000)]


def make_text(rng, count=120):
    return " ".join(rng.choices(WORDS, k=count))


def replace_words(rng, text, fraction):
    """Returns the text with that fraction of its words replaced."""
    return " ".join(
        rng.choice(WORDS) if rng.random() < fraction else word for word in text.split()
    )


@functools.cache
def list_ngrams(text, size):
    words = split_words(text)
    count = max(len(words) - size + 1, 1) if words else 0
    return {tuple(words[i : i + size]) for i in range(count)}


def compute_jaccard(one, other, size=5):
    one, other = list_ngrams(one, size), list_ngrams(other, size)
    return len(one & other) / max(len(one | other), 1)


@pytest.fixture(scope="module")
def texts():
    """300 texts, a third of them near duplicates of others with any similarity."""
    rng = random.Random(0)
    texts = [make_text(rng) for _ in range(200)]
    texts += [replace_words(rng, texts[i], rng.uniform(0, 0.06)) for i in range(100)]
    rng.shuffle(texts)
    return texts


def test_ngrams_of_many_texts_are_those_of_each_text():
    texts = ["a b c d", "", "e", "f g h", "a b c"]
    words = [split_words(text) for text in texts]
    hashes = hash_words(sum(words, []))
    ngrams, ends = hash_ngrams(hashes, np.cumsum([len(each) for each in words]), 3)
    assert np.diff(ends, prepend=0).tolist() == [2, 0, 1, 1, 1]
    for text, part in zip(texts, np.split(ngrams, ends[:-1]), strict=True):
        np.testing.assert_array_equal(np.unique(part), hash_ngram_set(text, 3))
    assert ngrams[0] == ngrams[-1]  # "a b c" in both


def test_the_jaccard_index_of_hashes_is_that_of_ngrams(texts):
    for one, other in zip(texts[:50], texts[50:100], strict=True):
        both = one + " " + other
        index = jaccard_index(hash_ngram_set(one, 5), hash_ngram_set(both, 5))
        assert index == pytest.approx(compute_jaccard(one, both))


def test_near_duplicates_are_those_found_by_comparing_every_pair(
    texts, make_corpus, run_pass
):
    """MinHash may miss pairs close to the threshold, and adds none."""
    corpus = make_corpus("web", texts)
    kept, log, report = run_pass(Dedup(sources={"web": corpus}))
    expected = []
    for text in texts:
        if max((compute_jaccard(text, old) for old in expected), default=0) < 0.8:
            expected.append(text)
    assert set(expected) <= set(kept)
    missed = len(kept) - len(expected)
    assert missed <= 0.05 * (len(texts) - len(expected))
    removed = [entry for entry in log if entry["reason"] == "near duplicate"]
    assert len(removed) > 30
    by_name = {f"web/{each.name}": each.text for each in read_documents(corpus)}
    for entry in removed:
        one, other = by_name[f"web/{entry['name']}"], by_name[entry["of"]]
        index = compute_jaccard(one, other)
        assert index == pytest.approx(entry["similarity"], abs=1e-4) and index >= 0.8
        assert other in kept
    assert report["sources"]["web"]["removed"]["near duplicate"] == len(removed)


def test_the_first_of_equal_texts_of_all_sources_is_kept(make_corpus, run_pass):
    one = make_corpus("a", ["one", "two", "one"])
    sources = {"a": one, "b": make_corpus("b", ["two", "new"])}
    kept, log, _ = run_pass(Dedup(sources=sources, minhash=None), "b")
    assert kept == ["new"]
    names = {each.text: f"a/{each.name}" for each in read_documents(one)[:2]}
    found = [(entry["source"], entry["of"]) for entry in log]
    assert found == [("a", names["one"]), ("b", names["two"])]


def test_short_texts_and_texts_without_words_are_no_duplicates(make_corpus, run_pass):
    corpus = make_corpus("web", ["!!", "??", "a", "b", "A"])
    kept, log, _ = run_pass(Dedup(sources={"web": corpus}))
    assert kept == ["!!", "??", "a", "b"]
    assert len(log) == 1 and log[0]["similarity"] == 1.0  # "A" of "a"


def test_a_pair_is_found_with_the_documented_probability():
    rng, minhash = random.Random(1), MinHash()
    expected, hits = [], 0
    for _ in range(400):
        one = make_text(rng)
        other = replace_words(rng, one, 0.08)
        index = compute_jaccard(one, other)
        expected.append(1 - (1 - index**minhash.rows) ** minhash.bands)
        bands = minhash.compute_signatures([one, other])
        hits += bool((bands[0] == bands[1]).any())
    deviation = np.sqrt(sum(p * (1 - p) for p in expected))
    assert abs(hits - sum(expected)) < 4 * deviation


def test_an_existing_folder_is_not_overwritten(make_corpus, run_pass, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ConfigError, match="out .* nothing is overwritten"):
        run_pass(Dedup(sources={"web": make_corpus("web", ["one"])}))


def test_a_source_name_that_is_no_file_name_is_refused(make_corpus, run_pass):
    with pytest.raises(ConfigError, match="'../up' cannot be a file name"):
        run_pass(Dedup(sources={"../up": make_corpus("web", ["one"])}))
