"""Filters, each with texts that violate only one limit."""

import pytest

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import Document
from lmx.data.curate.filter import (
    FilterDocuments,
    FineWeb,
    Gopher,
    GopherRepetition,
    LengthFilter,
    MaskPII,
    QualityClassifier,
    count_repeated_chars,
)

PROSE = (
    "It was the first time that anyone in the village had seen such a machine, and"
    " nobody knew what to make of it. The children ran to the square with their dogs.\n"
    "By evening the owner had arrived, a quiet woman of sixty, who answered every"
    " question but one: where she meant to go when the work of the harvest was done.\n"
    "She stayed for a week, slept in the barn, and left behind a drawing of the church."
)


def apply(rule, text):
    result = rule(Document("it", text))
    return result if isinstance(result, str) else result.text


def test_prose_passes_every_filter():
    for rule in (Gopher(), GopherRepetition(), FineWeb(), MaskPII()):
        assert apply(rule, PROSE) == PROSE


@pytest.mark.parametrize(
    "text, reason",
    [
        ("that was short and sweet", "fewer than 50 words"),
        (PROSE.replace("a", "") * 0 + "a b of the c " * 40, "short words"),
        (PROSE.replace(" ", "incomprehensibility ", 200), "long words"),
        (PROSE.replace("the", "# the"), "many hash signs"),
        (PROSE.replace(" the", "... the"), "many ellipses"),
        (
            PROSE.replace("\n", "\n- ").join(["- ", ""]),
            "lines that begin with a bullet",
        ),
        (PROSE.replace(".\n", "...\n"), "lines that end with an ellipsis"),
        (PROSE + " 123" * 30, "few words with a letter"),
        ("alpha beta gamma delta " * 20, "few stop words"),
    ],
)
def test_gopher_removes(text, reason):
    assert apply(Gopher(), text) == f"Gopher: {reason}"


def test_gopher_removes_long_texts():
    assert apply(Gopher(max_words=60), PROSE) == "Gopher: more than 60 words"


@pytest.mark.parametrize(
    "text, reason",
    [
        ("one\ntwo\none\ntwo\nthree", "duplicate lines"),
        (PROSE + "\n" + PROSE.splitlines()[0], "characters in duplicate lines"),
        ("a b\n\nc d\n\na b\n\nc d\n\nw\nx\ny\nz\nv\nu", "duplicate paragraphs"),
        ("over there " * 3 + "and so on", "characters in one 2-gram"),
    ],
)
def test_repetition_removes(text, reason):
    assert apply(GopherRepetition(), text) == f"GopherRepetition: {reason}"


def test_repetition_removes_duplicate_5_grams():
    text = " ".join(f"w{i}" for i in range(20)) + " alpha beta gamma delta phi" * 2
    rule = GopherRepetition(max_top_ngram_chars=())
    assert apply(rule, text) == ("GopherRepetition: characters in duplicate 5-grams")
    assert (
        apply(
            GopherRepetition(max_top_ngram_chars=(), max_duplicate_ngram_chars=(0.2,)),
            text,
        )
        == text
    )  # they are 22 of 123


def test_characters_in_repeated_ngrams_are_counted_once():
    words = "aa bb cc aa bb cc aa bb xx".split()
    assert count_repeated_chars(words, 2) == 2 * 5  # the second "aa bb cc aa bb", once
    assert count_repeated_chars(words, 9) == 0


@pytest.mark.parametrize(
    "text, reason",
    [
        ("\n \n", "no line"),
        ("Home\nAbout\nContact", "few lines that end as a sentence"),
        (
            "A line of its own, here.\n" * 2 + PROSE[:60],
            "characters in duplicate lines",
        ),
        ("Yes.\nNo.\nPerhaps.\n" + PROSE.splitlines()[0], "short lines"),
    ],
)
def test_fineweb_removes(text, reason):
    assert apply(FineWeb(), text) == f"FineWeb: {reason}"


@pytest.mark.parametrize(
    "text, masked",
    [
        ("write to Jane.Doe+x@mail.example.co.uk, now", "write to <email>, now"),
        (
            "a@b is none, nor is @home, nor x@y.1",
            "a@b is none, nor is @home, nor x@y.1",
        ),
        ("ping 8.8.8.8 or 10.0.0.1", "ping <ip> or 10.0.0.1"),
        (
            "version 1.2.3 of 300.1.1.1, 1.2.3.4.5",
            "version 1.2.3 of 300.1.1.1, 1.2.3.4.5",
        ),
        ("at 2001:4860:4860::8888.", "at <ip>."),
        ("at 12:30, ::1 and fe80::1", "at 12:30, ::1 and fe80::1"),
    ],
)
def test_public_addresses_are_masked_and_similar_text_is_not(text, masked):
    assert apply(MaskPII(), text) == masked


def test_the_log_and_the_report_count_each_filter(make_corpus, run_pass):
    texts = [PROSE, "too short", PROSE + " Ask me@there.org for it.", ""]
    rules = (LengthFilter(min_chars=20), Gopher(), MaskPII())
    kept, log, report = run_pass(
        FilterDocuments(sources={"web": make_corpus("web", texts)}, filters=rules)
    )
    assert kept == [PROSE, PROSE + " Ask <email> for it."]
    assert report["sources"]["web"] == {
        "documents": 4,
        "kept": 2,
        "bytes": sum(len(text) for text in kept),
        "removed": {"fewer than 20 characters": 1, "no text": 1},
        "changed": {"MaskPII": 1},
    }
    assert [entry.get("reason", entry.get("changed")) for entry in log] == [
        "fewer than 20 characters",
        "MaskPII",
        "no text",
    ]


def test_kept_documents_can_be_read_as_a_corpus(make_corpus, run_pass, tmp_path):
    from lmx.data.corpus.text import Text

    rules = (LengthFilter(min_chars=1),)
    kept, _, _ = run_pass(
        FilterDocuments(sources={"web": make_corpus("web", [PROSE])}, filters=rules)
    )
    again = Text(path=f"{tmp_path / 'out' / 'kept' / 'web.jsonl'}")
    found = [*again.read("train"), *again.read("validation")]
    assert [document.text for document in found] == kept


def test_a_classifier_keeps_texts_like_the_good_examples(
    make_corpus, capsys, monkeypatch
):
    monkeypatch.setattr("lmx.data.curate.filter.HASH_FEATURES", 2**10)
    good = make_corpus("good", [f"{PROSE} Chapter {n}." for n in range(10)])
    bad = make_corpus(
        "bad", [f"buy cheap watches click here offer {n}" for n in range(10)]
    )
    rule = QualityClassifier(good=good, bad=bad)
    assert apply(rule, PROSE[:150]) == PROSE[:150]
    found = apply(rule, "click here to buy a cheap offer")
    assert found == "QualityClassifier: unlike the good examples"
    assert "accuracy on held-out examples: 100.0%" in capsys.readouterr().err


def test_too_few_examples_are_refused(make_corpus):
    few = make_corpus("few", ["one", "two"])
    with pytest.raises(
        ConfigError, match="QualityClassifier.bad has 2 texts: give at least 5"
    ):
        QualityClassifier(good=few, bad=few)(Document("it", PROSE))
