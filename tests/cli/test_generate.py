"""`lmx generate`, from prompts to text."""

import argparse
import codecs
import json
import shutil

import pytest

from lmx.cli.runs import generate
from lmx.cli.runs.generate import read_prompts
from lmx.data.tokenizer.base import ByteTokenizer
from lmx.infer.beam import BeamSearch, Hypothesis

pytestmark = pytest.mark.usefixtures("compile_once")

GREEDY = ("--temperature", "0", "--tokens", "20")
PROMPTS = ["a be", "faded", "b"]


@pytest.fixture
def generate_json(trained, lmx):
    """The JSON objects that a command prints, one a line."""

    def generate_json(*words):
        status, out, err = lmx("generate", trained.run, *words, "--json")
        assert (status, err) == (0, "")
        return [json.loads(line) for line in out.splitlines()]

    return generate_json


def test_generated_text_streams_and_is_that_of_json(trained, lmx, generate_json):
    words = ("--prompt", "a be", *GREEDY)
    status, out, _ = lmx("generate", trained.run, *words)
    assert status == 0 and out.startswith("a be") and out.endswith("\n")
    (result,) = generate_json(*words)
    assert (result["prompt"], result["text"]) == ("a be", out[4:-1])
    assert len(result["text"]) == 20 and set(result["text"]) <= set("a bead faded\n")
    assert len(result["tokens"]) == len(result["logprobs"]) == 20
    assert max(result["logprobs"]) <= 0


def test_a_seed_draws_the_same_text(trained, lmx):
    words = ("generate", trained.run, "--prompt", "a", "--tokens", "20")
    texts = [lmx(*words, "--seed", "1")[1] for _ in range(2)]
    assert texts[0] == texts[1] and len(texts[0]) == 22


def test_prompts_of_a_file_are_continued_as_if_each_were_alone(
    trained, lmx, generate_json, tmp_path
):
    file = tmp_path / "prompts.txt"
    file.write_text("\n\n".join(PROMPTS))
    words = ("--file", str(file), *GREEDY)
    alone = [
        (each["prompt"], each["text"]) for each in generate_json(*words, "--batch", "1")
    ]
    assert [prompt for prompt, _ in alone] == PROMPTS
    assert [(each["prompt"], each["text"]) for each in generate_json(*words)] == alone
    out = lmx("generate", trained.run, *words)[1]
    assert out == "\n---\n".join(prompt + text for prompt, text in alone) + "\n"


def test_prompts_are_lines_or_those_of_json_objects(tmp_path):
    prompts = ["a", " b ", "é\u2028c"]
    (tmp_path / "a.txt").write_bytes("\r\n\n".join(prompts).encode())
    objects = [json.dumps({"prompt": prompt, "id": 1}) for prompt in prompts]
    (tmp_path / "a.jsonl").write_text("\n".join(objects) + "\n")
    for name in ("a.txt", "a.jsonl"):
        assert read_prompts(tmp_path / name) == prompts
        data = (tmp_path / name).read_bytes()
        (tmp_path / f"bom-{name}").write_bytes(codecs.BOM_UTF8 + data)
        assert read_prompts(tmp_path / f"bom-{name}") == prompts


def test_beams_keep_the_space_after_the_prompt(monkeypatch):
    """Of tokenizers that put a space before a text."""
    monkeypatch.setattr(ByteTokenizer, "strip_leading_space", True)
    tokenizer, args = ByteTokenizer(), argparse.Namespace(batch=1, tokens=2)
    search = object.__new__(BeamSearch)
    monkeypatch.setattr(
        BeamSearch, "__call__", lambda *_: [[Hypothesis([*b" b"], 0.0)]]
    )
    for prompt, text in (([256, *b" a"], " b"), ([256], "b")):
        (found,) = generate._search_beams(args, tokenizer, search, [prompt])
        assert found["text"] == text == found["beams"][0]["text"]


def test_samples_do_not_depend_on_the_batch_size(generate_json, tmp_path):
    (tmp_path / "same.txt").write_text("a\n" * 3)
    words = ("--file", str(tmp_path / "same.txt"), "--tokens", "20", "--batch")
    texts = [
        [each["text"] for each in generate_json(*words, batch)] for batch in ("1", "3")
    ]
    assert texts[0] == texts[1] and len(set(texts[0])) == 3


def test_a_text_ends_before_a_stop_string(trained, lmx, generate_json):
    words = ("--prompt", "a", *GREEDY)
    (free,) = generate_json(*words)
    stop = free["text"][7:10]
    end = free["text"].index(stop)
    (result,) = generate_json(*words, "--stop", "zzz", "--stop", stop)
    assert result["text"] == free["text"][:end]
    assert result["tokens"] == free["tokens"][: end + 3]
    out = lmx("generate", trained.run, *words, "--stop", stop)[1]
    assert out == f"a{free['text'][:end]}\n"


def test_beams_come_best_first_and_the_first_is_the_text(trained, lmx, generate_json):
    words = ("--prompt", "a be", "--tokens", "6", "--beams", "3")
    (result,) = generate_json(*words)
    scores = [beam["score"] for beam in result["beams"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert result["text"] == result["beams"][0]["text"]
    assert lmx("generate", trained.run, *words)[1] == f"a be{result['text']}\n"
    (other,) = generate_json(*words, "--length-penalty", "0")
    assert other["beams"][0]["score"] == pytest.approx(6 * scores[0], rel=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a", "--tokens", "0"], "--tokens is 0: it must be 1 or more"),
        (["--prompt", "a", "--batch", "0"], "--batch is 0: it must be 1 or more"),
        (
            ["--prompt", "a", "--top-p", "2"],
            "top_p is 2.0: it must be above 0, and at most 1",
        ),
        (["--prompt", "a", "--temperature", "-1"], "temperature is -1.0: it must be 0"),
        ([], "this model has no token that starts a document: give a prompt"),
        (["--prompt", "xyz"], "'x' (U+0078) is not one of the"),
        (
            ["--prompt", "a", "--beams", "0"],
            "BeamConfig.beams is 0: it must be 1 or more",
        ),
        (["--beams", "2", "--top-k", "3"], "remove --top-k, or --beams"),
        (["--beams", "2", "--stop", "a"], "remove --stop, or --beams"),
        (["--length-penalty", "1"], "--length-penalty is for beam search"),
        (
            ["--prompt", "a", "--stop", ""],
            "a stop string must have at least one character",
        ),
        (["--file", "none.txt"], "No such file or directory: 'none.txt'"),
    ],
)
def test_what_cannot_be_generated_is_refused(trained, lmx, words, message):
    status, out, err = lmx("generate", trained.run, *words)
    assert status == 2 and err.startswith("error: ") and message in err
    assert out == ""


def test_a_file_of_no_prompts_is_refused_where_it_is_wrong(tmp_path):
    for name, text, message in (
        ("a.txt", "\n \n", "a.txt has no prompts: write one per line"),
        ("a.jsonl", '{"prompt": "a"}\n[1]', "a.jsonl:2 must hold a JSON object"),
        ("b.jsonl", '{"prompt": 1}', "b.jsonl:1: prompt must be str, got 1"),
        ("c.jsonl", "prompt", "c.jsonl:1 is not JSON"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_prompts(tmp_path / name)


def test_a_folder_without_a_trained_model_is_refused(trained, lmx, tmp_path):
    for path, message in {
        tmp_path / "none": "is not a run: it has no metadata.json",
        tmp_path: "is not a run: it has no metadata.json",
        tmp_path / "fresh": "has no checkpoint yet: train it further first",
    }.items():
        if path.name == "fresh":
            shutil.copytree(trained.run, path)
            shutil.rmtree(path / "checkpoints")
        for words in (
            ["generate", str(path), "--prompt", "a"],
            ["eval", str(path), __file__],
        ):
            status, out, err = lmx(*words)
            assert (status, out) == (2, "") and message in err
