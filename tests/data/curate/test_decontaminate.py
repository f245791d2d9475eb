"""What an evaluation asks is in no document that stays."""

import pytest

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import Document
from lmx.data.curate.decontaminate import Decontaminate
from lmx.data.curate.document_pass import read_all_splits
from lmx.data.curate.ngrams import split_words


def documents(corpus):
    return [item for item in read_all_splits(corpus) if isinstance(item, Document)]


QUESTION = (
    "Which of the two rivers that meet below the old town is the longer one, then?"
)
SHORT = "What is the capital of the smallest state?"


def shares(text, asked, size):
    """Whether a run of words is in both, by looking at every one."""
    one, other = split_words(text), split_words(asked)
    runs = {tuple(other[i : i + size]) for i in range(len(other) - size + 1)}
    return any(tuple(one[i : i + size]) in runs for i in range(len(one) - size + 1))


def test_a_document_goes_where_any_run_is_in_an_evaluation_as_by_every_run(
    lines, sifted
):
    texts = [
        f"Some say: {QUESTION.upper()} Others do not.",
        "which of the two rivers that meet below the old town is",  # 12 words
        QUESTION.replace("longer", "shorter").replace(",", " --"),
        f"Ask ({SHORT}) and you will know.",
        "Nothing of the kind is said here by anyone at any time of the day or night.",
    ]
    against = {"quiz": lines("quiz", [QUESTION, SHORT, "Too short."])}
    sieve = Decontaminate(sources={"web": lines("web", texts)}, against=against)
    kept, log, report = sifted(sieve)
    wanted = [
        text
        for text in texts
        if not (shares(text, QUESTION, 13) or shares(text, SHORT, 8))
    ]
    assert kept == wanted and len(kept) == 2
    assert report["sources"]["web"]["removed"] == {"shares words with quiz": 3}
    first, second, _ = (f"quiz/{each.name}" for each in documents(against["quiz"]))
    assert [entry["of"] for entry in log] == [first, first, second]
    assert log[2]["words"] == "what is the capital of the smallest state"


def test_texts_too_short_to_look_for_are_counted(lines, sifted, capsys):
    against = {"quiz": lines("quiz", ["Too short.", QUESTION])}
    sifted(Decontaminate(sources={"web": lines("web", ["a"])}, against=against))
    said = capsys.readouterr().err
    assert "1 texts of fewer than 8 words are not looked for" in said


def test_bounds_that_cannot_be_are_refused(lines):
    quiz = {"quiz": lines("quiz", [QUESTION])}
    with pytest.raises(ConfigError, match="Decontaminate.min_words is 14"):
        Decontaminate(sources={}, against=quiz, min_words=14)
    with pytest.raises(ConfigError, match="names no evaluation"):
        Decontaminate(sources={}, against={})
