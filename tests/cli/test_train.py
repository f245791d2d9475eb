"""`lmx train` and `lmx generate`, from words to files and text."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest

from lmx.cli.main import main

TINY = Path(__file__).parents[1] / "train" / "tiny.gin"
WORDS = [
    "Experiment.steps=3",
    "Experiment.data=@Tokens()",
    "Tokens.corpus=@Text()",
    "Tokens.tokenizer=@Characters()",
    "Tokens.length=16",
    "Tokens.batch=8",
    "Text.path=text.txt",
    "Text.split=@Tail()",
    "Mesh.data=1",
    "Experiment.hooks=[@Evaluate()]",
    "Evaluate.data=@held/Tokens()",
    "held/Tokens.split=validation",
    "held/Tokens.order=@InOrder()",
]
LINES = "a bead faded\n" * 40
VOCAB = f"Decoder.vocab={len(set(LINES))}"


def spoken(*words):
    """The status of a verb and what it said."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        with pytest.raises(SystemExit) as stop:
            main(words)
    return stop.value.code, said.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a page that lies elsewhere: its folder, and the summary as JSON."""
    work = tmp_path_factory.mktemp("work")
    (work / "text.txt").write_text(LINES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(work)
        status, said = spoken("train", str(TINY), *WORDS, VOCAB, "--json")
    assert status == 0
    return work, json.loads(said)


def test_json_is_the_newest_value_of_every_metric(trained):
    work, summary = trained
    assert summary["step"] == 3 and summary["tokens_seen"] == 3 * 8 * 16
    assert summary["nats"] > 0 and summary["validation/bits_per_byte"] > 0
    assert (work / summary["run"] / "metrics.jsonl").is_file()


def test_the_run_lies_where_one_stands_under_the_name_of_the_page(trained):
    work, summary = trained
    (run,) = (work / "runs").iterdir()
    assert summary["run"] == f"runs/{run.name}" and run.name.startswith("tiny-")
    assert sorted(path.name for path in work.iterdir()) == ["runs", "text.txt"]


def test_the_same_words_again_say_the_same_for_a_person(trained, monkeypatch, tmp_path):
    work, summary = trained
    monkeypatch.setenv("LMX_CACHE", str(tmp_path))
    monkeypatch.chdir(work)
    status, said = spoken("train", str(TINY), *WORDS, VOCAB)
    assert status == 0
    assert f"training    {summary['nats']:.4f} nats per token" in said
    assert f"{summary['validation/bits_per_byte']:.4f} bits per byte" in said
    assert f"lmx generate {summary['run']} --prompt" in said


GREEDY = ("--prompt", "a be", "--temperature", "0", "--tokens", "20")


def test_generated_text_streams_and_is_that_of_json(trained):
    work, summary = trained
    run = str(work / summary["run"])
    status, said = spoken("generate", run, *GREEDY)
    assert status == 0 and said.startswith("a be") and said.endswith("\n")
    told = json.loads(spoken("generate", run, *GREEDY, "--json")[1])
    assert told == {"prompt": "a be", "text": said[4:-1]}
    assert len(told["text"]) == 20 and set(told["text"]) <= set(LINES)


def test_a_seed_draws_the_same_text(trained):
    work, summary = trained
    words = ("generate", str(work / summary["run"]), "--prompt", "a", "--tokens", "20")
    texts = [spoken(*words, "--seed", "1")[1] for _ in range(2)]
    assert texts[0] == texts[1] and len(texts[0]) == 22


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a", "--tokens", "0"], "--tokens is 0: it must be 1 or more"),
        (["--prompt", "a", "--top-p", "2"], "top_p is 2.0: above 0 and at most 1"),
        (["--prompt", "a", "--temperature", "-1"], "temperature is -1.0: it must be 0"),
        ([], "this model has no token that begins a document: give a prompt"),
        (["--prompt", "xyz"], "'x' (U+0078) is none of the"),
    ],
)
def test_what_cannot_be_generated_is_refused(trained, lmx, words, message):
    work, summary = trained
    status, said, moaned = lmx("generate", str(work / summary["run"]), *words)
    assert (status, said) == (2, "") and f"error: {message}" in moaned


def test_a_folder_that_has_nothing_to_say_is_refused(trained, lmx, tmp_path):
    for path, message in {
        tmp_path / "none": "is no run: it has no experiment.json",
        tmp_path: "is no run: it has no experiment.json",
        tmp_path / "fresh": "has saved nothing yet: train it further first",
    }.items():
        if path.name == "fresh":
            work, summary = trained
            shutil.copytree(work / summary["run"], path)
            shutil.rmtree(path / "checkpoints")
        status, said, moaned = lmx("generate", str(path), "--prompt", "a")
        assert (status, said) == (2, "") and message in moaned
