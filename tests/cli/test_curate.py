"""`lmx data dedup`, `filter` and `decontaminate`, each on the output of the last."""

import json

import pytest

CONFIGS = {
    "once": "Dedup.sources = {'web': @Text()}\nText.path = 'web.jsonl'\n",
    "good": (
        "FilterDocuments.sources = {'web': @Text()}\n"
        "Text.path = 'once/kept/web.jsonl'\n"
        "FilterDocuments.filters = [@LengthFilter()]\nLengthFilter.min_chars = 12\n"
    ),
    "fair": (
        "Decontaminate.sources = {'web': @web/Text()}\n"
        "Decontaminate.against = {'quiz': @quiz/Text()}\n"
        "web/Text.path = 'good/kept/web.jsonl'\nquiz/Text.path = 'quiz.jsonl'\n"
        "Decontaminate.ngram_size = 4\nDecontaminate.min_words = 4\n"
    ),
}
TEXTS = ["the end is near here", "short", "the end is near here", "a text that stays"]


@pytest.fixture
def configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, texts in {"web": TEXTS, "quiz": ["The end is near."]}.items():
        lines = [f"{json.dumps({'text': text})}\n" for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    for name, text in CONFIGS.items():
        (tmp_path / f"{name}.gin").write_text(text)
    return tmp_path


def test_each_command_reads_what_the_last_one_kept(lmx, configs):
    before = (configs / "web.jsonl").read_bytes()
    for command, name, why in (
        ("dedup", "once", "same text"),
        ("filter", "good", "fewer than 12 characters"),
        ("decontaminate", "fair", "shares words with quiz"),
    ):
        status, out, err = lmx("data", command, f"{name}.gin", name)
        assert status == 0 and f"1 removed: {why}" in out, err
    kept = (configs / "fair" / "kept" / "web.jsonl").read_text()
    assert json.loads(kept)["text"] == "a text that stays"
    assert (configs / "web.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "out"),
    [
        (["once.gin"], "write lmx data dedup CONFIG.gin OUT"),
        (["once.gin", "out", "Dedup.treshold=0.5"], "did you mean"),
        (["once.gin", "out", "Text.path=none.jsonl"], "there is no none.jsonl"),
        (["once.gin", "out", "Dedup.threshold=2.0"], "Dedup.threshold is 2.0"),
        (["good.gin", "out"], "@Dedup needs Dedup.sources"),
    ],
)
def test_invalid_arguments_are_refused_and_write_nothing(lmx, configs, words, out):
    status, _, err = lmx("data", "dedup", *words)
    assert status == 2 and out in err and "Traceback" not in err
    assert not (configs / "out").exists()
