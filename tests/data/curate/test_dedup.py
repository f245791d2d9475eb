"""Duplicates go, and nothing else does: against every pair looked at."""

import random

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import Document
from lmx.data.curate.dedup import Dedup, MinHash
from lmx.data.curate.document_pass import read_all_splits
from lmx.data.curate.ngrams import (
    hash_ngram_set,
    hash_ngrams,
    hash_words,
    jaccard_index,
    split_words,
)


def documents(corpus):
    return [item for item in read_all_splits(corpus) if isinstance(item, Document)]


WORDS = [f"word{n}" for n in range(2000)]


def text(chance, count=120):
    return " ".join(chance.choices(WORDS, k=count))


def worn(chance, old, share):
    """The text with that share of its words changed."""
    return " ".join(
        chance.choice(WORDS) if chance.random() < share else word
        for word in old.split()
    )


def plain_runs(text, size):
    found = split_words(text)
    if not found:
        return set()
    return {tuple(found[i : i + size]) for i in range(max(len(found) - size + 1, 1))}


def jaccard(one, other, size=5):
    one, other = plain_runs(one, size), plain_runs(other, size)
    return len(one & other) / max(len(one | other), 1)


@pytest.fixture(scope="module")
def planted():
    """300 texts, a third of them worn copies of others at every likeness."""
    chance = random.Random(0)
    found = [text(chance) for _ in range(200)]
    found += [worn(chance, found[i], chance.uniform(0, 0.06)) for i in range(100)]
    chance.shuffle(found)
    return found


def test_runs_of_many_texts_are_those_of_each_by_itself():
    texts = ["a b c d", "", "e", "f g h", "a b c"]
    split = [split_words(each) for each in texts]
    number = hash_words(sum(split, []))
    found, ends = hash_ngrams(number, np.cumsum([len(each) for each in split]), 3)
    assert np.diff(ends, prepend=0).tolist() == [2, 0, 1, 1, 1]
    for each, part in zip(texts, np.split(found, ends[:-1]), strict=True):
        np.testing.assert_array_equal(np.unique(part), hash_ngram_set(each, 3))
    assert found[0] == found[-1]  # "a b c" in either


def test_likeness_is_jaccards_of_sets_of_words_written_out(planted):
    for one, other in zip(planted[:50], planted[50:100], strict=True):
        both = one + " " + other
        found = jaccard_index(hash_ngram_set(one, 5), hash_ngram_set(both, 5))
        assert found == pytest.approx(jaccard(one, both))


def test_what_goes_is_what_looking_at_every_pair_removes(planted, lines, sifted):
    """MinHash may miss a pair that is hardly alike enough, and adds none."""
    corpus = lines("web", planted)
    kept, log, report = sifted(Dedup(sources={"web": corpus}))
    staying = []
    for each in planted:
        if max((jaccard(each, old) for old in staying), default=0) < 0.8:
            staying.append(each)
    assert set(staying) <= set(kept)
    missed = len(kept) - len(staying)
    assert missed <= 0.05 * (len(planted) - len(staying))
    removed = [entry for entry in log if entry["reason"] == "near duplicate"]
    assert len(removed) > 30
    by_name = {f"web/{each.name}": each.text for each in documents(corpus)}
    for entry in removed:
        likeness = jaccard(by_name[f"web/{entry['name']}"], by_name[entry["of"]])
        assert likeness == pytest.approx(entry["alike"], abs=1e-4) and likeness >= 0.8
        assert by_name[entry["of"]] in kept
    assert report["sources"]["web"]["removed"]["near duplicate"] == len(removed)


def test_equal_texts_go_in_any_source_and_the_first_stays(lines, sifted):
    sources = {"a": lines("a", ["one", "two", "one"]), "b": lines("b", ["two", "new"])}
    kept, log, _ = sifted(Dedup(sources=sources, minhash=None), "b")
    assert kept == ["new"]
    names = {each.text: f"a/{each.name}" for each in documents(sources["a"])[:2]}
    found = [(entry["source"], entry["of"]) for entry in log]
    assert found == [("a", names["one"]), ("b", names["two"])]


def test_short_texts_and_texts_without_words_are_no_duplicates(lines, sifted):
    texts = ["!!", "??", "a", "b", "A"]
    kept, log, _ = sifted(Dedup(sources={"web": lines("web", texts)}))
    assert kept == ["!!", "??", "a", "b"]
    assert len(log) == 1 and log[0]["alike"] == 1.0  # "A" of "a"


def test_a_pair_is_found_as_often_as_the_docstring_says():
    chance, found = random.Random(1), MinHash()
    expected, hits = [], 0
    for _ in range(400):
        one = text(chance)
        other = worn(chance, one, 0.08)
        expected.append(1 - (1 - jaccard(one, other) ** found.rows) ** found.bands)
        bands = found.compute_signatures([one, other])
        hits += bool((bands[0] == bands[1]).any())
    deviation = np.sqrt(sum(p * (1 - p) for p in expected))
    assert abs(hits - sum(expected)) < 4 * deviation


def test_a_folder_that_is_there_is_not_written_over(lines, sifted, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ConfigError, match="out is there and nothing is overwritten"):
        sifted(Dedup(sources={"web": lines("web", ["one"])}))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Dedup(sources={}, threshold=1.5), "Dedup.threshold is 1.5: above 0"),
        (lambda: MinHash(bands=0), "MinHash.bands is 0: at least 1"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_source_whose_name_is_no_files_is_refused(lines, sifted):
    with pytest.raises(ConfigError, match="'../up' cannot name a file"):
        sifted(Dedup(sources={"../up": lines("web", ["one"])}))
