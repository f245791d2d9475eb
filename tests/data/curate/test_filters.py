"""What each rule refuses, by texts that break that one alone."""

import pytest

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import Document
from lmx.data.curate.filter import LengthFilter
from lmx.data.curate.filter_documents import FilterDocuments
from lmx.data.curate.fineweb import FineWeb
from lmx.data.curate.gopher import Gopher, GopherRepetition, count_repeated_chars
from lmx.data.curate.pii import MaskPII
from lmx.data.curate.quality import QualityClassifier

PROSE = (
    "It was the first time that anyone in the village had seen such a machine, and"
    " nobody knew what to make of it. The children ran to the square with their dogs.\n"
    "By evening the owner had arrived, a quiet woman of sixty, who answered every"
    " question but one: where she meant to go when the work of the harvest was done.\n"
    "She stayed for a week, slept in the barn, and left behind a drawing of the church."
)


def ruled(rule, text):
    found = rule(Document("it", text))
    return found if isinstance(found, str) else found.text


def test_prose_passes_every_rule():
    for rule in (Gopher(), GopherRepetition(), FineWeb(), MaskPII()):
        assert ruled(rule, PROSE) == PROSE


@pytest.mark.parametrize(
    "text, why",
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
def test_gopher_refuses(text, why):
    assert ruled(Gopher(), text) == f"Gopher:{why}"


def test_gopher_refuses_what_is_too_long():
    assert ruled(Gopher(max_words=60), PROSE) == "Gopher: more than 60 words"


@pytest.mark.parametrize(
    "text, why",
    [
        ("one\ntwo\none\ntwo\nthree", "duplicate lines"),
        (PROSE + "\n" + PROSE.splitlines()[0], "characters in duplicate lines"),
        ("a b\n\nc d\n\na b\n\nc d\n\nw\nx\ny\nz\nv\nu", "duplicate paragraphs"),
        ("over there " * 3 + "and so on", "characters in one run of 2 words"),
    ],
)
def test_repetition_refuses(text, why):
    assert ruled(GopherRepetition(), text) == f"GopherRepetition:{why}"


def test_repetition_refuses_runs_of_five_words_and_more():
    text = " ".join(f"w{i}" for i in range(20)) + " alpha beta gamma delta phi" * 2
    rule = GopherRepetition(max_top_ngram_chars=())
    assert ruled(rule, text) == ("Repetition: characters in duplicate runs of 5 words")
    assert (
        ruled(
            GopherRepetition(max_top_ngram_chars=(), max_duplicate_ngram_chars=(0.2,)),
            text,
        )
        == text
    )  # they are 22 of 123


def test_characters_within_repeated_runs_are_counted_once():
    words = "aa bb cc aa bb cc aa bb xx".split()
    assert count_repeated_chars(words, 2) == 2 * 5  # the second "aa bb cc aa bb", once
    assert count_repeated_chars(words, 9) == 0


@pytest.mark.parametrize(
    "text, why",
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
def test_fineweb_refuses(text, why):
    assert ruled(FineWeb(), text) == f"FineWeb:{why}"


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
def test_addresses_are_masked_and_what_looks_like_them_is_not(text, masked):
    assert ruled(MaskPII(), text) == masked


def test_the_log_and_the_report_say_what_each_rule_did(lines, sifted):
    texts = [PROSE, "too short", PROSE + " Ask me@there.org for it.", ""]
    rules = (LengthFilter(min_chars=20), Gopher(), MaskPII())
    kept, log, report = sifted(
        FilterDocuments(sources={"web": lines("web", texts)}, filters=rules)
    )
    assert kept == [PROSE, PROSE + " Ask <email> for it."]
    assert report["sources"]["web"] == {
        "documents": 4,
        "kept": 2,
        "bytes": sum(len(text) for text in kept),
        "removed": {"fewer than 20 characters": 1, "no text": 1},
        "changed": {"MaskPersonal": 1},
    }
    assert [entry.get("reason", entry.get("changed")) for entry in log] == [
        "fewer than 20 characters",
        "MaskPersonal",
        "no text",
    ]


def test_what_is_kept_can_be_read_again(lines, sifted, tmp_path):
    from lmx.data.corpus.text import Text

    rules = (LengthFilter(min_chars=1),)
    kept, _, _ = sifted(
        FilterDocuments(sources={"web": lines("web", [PROSE])}, filters=rules)
    )
    again = Text(path=f"{tmp_path / 'out' / 'kept' / 'web.jsonl'}")
    found = [*again.read("train"), *again.read("validation")]
    assert [document.text for document in found] == kept


def test_a_judge_tells_texts_like_the_good_examples(lines, capsys):
    good = lines("good", [f"{PROSE} Chapter {n}." for n in range(10)])
    bad = lines("bad", [f"buy cheap watches click here offer {n}" for n in range(10)])
    rule = QualityClassifier(good=good, bad=bad)
    assert ruled(rule, PROSE[:150]) == PROSE[:150]
    found = ruled(rule, "click here to buy a cheap offer")
    assert found == "Quality: unlike the good examples"
    assert "right of 100.0% of examples" in capsys.readouterr().err


def test_too_few_examples_are_refused(lines):
    few = lines("few", ["one", "two"])
    with pytest.raises(
        ConfigError, match="QualityClassifier.bad has 2 texts: give at least 5"
    ):
        QualityClassifier(good=few, bad=few)(Document("it", PROSE))
