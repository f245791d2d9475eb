"""Removal of documents that contain text of an evaluation."""

import pytest

from lmx.config.registry import ConfigError
from lmx.data.curate.dedup import Decontaminate, split_words
from tests.data.curate.conftest import read_documents

QUESTION = (
    "Which of the two rivers that meet below the old town is the longer one, then?"
)
SHORT = "What is the capital of the smallest state?"


def share_ngram(text, other, size):
    """Whether an n-gram is in both texts, by comparing all."""
    one, other = split_words(text), split_words(other)
    ngrams = {tuple(other[i : i + size]) for i in range(len(other) - size + 1)}
    return any(tuple(one[i : i + size]) in ngrams for i in range(len(one) - size + 1))


def test_a_document_is_removed_if_any_ngram_is_in_an_evaluation(make_corpus, run_pass):
    texts = [
        f"Some say: {QUESTION.upper()} Others do not.",
        "which of the two rivers that meet below the old town is",  # 12 words
        QUESTION.replace("longer", "shorter").replace(",", " --"),
        f"Ask ({SHORT}) and you will know.",
        "Nothing of the kind is said here by anyone at any time of the day or night.",
    ]
    against = {"quiz": make_corpus("quiz", [QUESTION, SHORT, "Too short."])}
    sources = {"web": make_corpus("web", texts)}
    kept, log, report = run_pass(Decontaminate(sources=sources, against=against))
    expected = [
        text
        for text in texts
        if not (share_ngram(text, QUESTION, 13) or share_ngram(text, SHORT, 8))
    ]
    assert kept == expected and len(kept) == 2
    assert report["sources"]["web"]["removed"] == {"shares words with quiz": 3}
    first, second, _ = (f"quiz/{each.name}" for each in read_documents(against["quiz"]))
    assert [entry["of"] for entry in log] == [first, first, second]
    assert log[2]["words"] == "what is the capital of the smallest state"


def test_short_texts_of_evaluations_are_counted(make_corpus, run_pass, capsys):
    against = {"quiz": make_corpus("quiz", ["Too short.", QUESTION])}
    sources = {"web": make_corpus("web", ["a"])}
    run_pass(Decontaminate(sources=sources, against=against))
    output = capsys.readouterr().err
    assert "1 texts of fewer than 8 words are ignored" in output


def test_inconsistent_limits_are_refused(make_corpus):
    quiz = {"quiz": make_corpus("quiz", [QUESTION])}
    with pytest.raises(ConfigError, match="Decontaminate.min_words is 14"):
        Decontaminate(sources={}, against=quiz, min_words=14)
    with pytest.raises(ConfigError, match="against is {}: it must be evaluations"):
        Decontaminate(sources={}, against={})
