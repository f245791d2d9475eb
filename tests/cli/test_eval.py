"""`lmx eval`, from files to scores."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("compile_once")

LINES = "a bead faded\n" * 40
HELD_OUT = LINES[int(len(LINES) * 0.9) :]


@pytest.fixture
def file(tmp_path):
    """The text that was held out in training."""
    (tmp_path / "held.txt").write_text(HELD_OUT)
    return str(tmp_path / "held.txt")


def test_the_held_out_text_scores_as_it_did_in_training(trained, lmx, file):
    words = ("--json", "--length", "16", "--stride", "16")
    status, out, _ = lmx("eval", trained.run, file, *words)
    result, summary = json.loads(out), trained.summary
    assert status == 0 and result["step"] == 3 and result["run"] == trained.run
    score = result["files"][file]
    for name in ("nats", "perplexity", "bits_per_byte", "tokens", "bytes"):
        assert score[name] == pytest.approx(summary[f"validation/{name}"], rel=1e-5)
    assert result["all"] == score


def test_windows_are_as_in_training_by_default(trained, lmx, file):
    result = json.loads(lmx("eval", trained.run, file, "--json")[1])
    assert (result["length"], result["stride"]) == (16, 8)


def test_several_files_give_a_table_and_their_total(trained, lmx, file, tmp_path):
    other = tmp_path / "a.txt"
    other.write_text("a bad bed\n")
    status, out, _ = lmx("eval", trained.run, file, str(other))
    head, titles, *rows = out.splitlines()
    assert status == 0 and len(rows) == 3
    assert head.endswith(" at step 3, 16 tokens every 8")
    assert titles.split()[:4] == ["text", "nats/token", "perplexity", "bits/byte"]
    result = json.loads(lmx("eval", trained.run, file, str(other), "--json")[1])
    numbers = [*result["files"].values(), result["all"]]
    for row, name, score in zip(rows, [file, str(other), "all"], numbers, strict=True):
        assert row.split()[0] == name and row.split()[1] == f"{score['nats']:.4f}"
    for name in ("tokens", "bytes"):
        assert numbers[2][name] == numbers[0][name] + numbers[1][name]
    sums = [score["nats"] * score["tokens"] for score in numbers]
    assert sums[2] == pytest.approx(sums[0] + sums[1])


def test_the_texts_of_json_lines_are_scored_and_not_their_braces(
    trained, lmx, tmp_path
):
    texts = ["a bad bed\n", "a bead faded\n"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "x.jsonl").write_text(lines)
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    files = [str(tmp_path / name) for name in ("x.jsonl", "0.txt", "1.txt")]
    found = [
        json.loads(lmx("eval", trained.run, *names, "--json")[1])["all"]
        for names in (files[:1], files[1:])
    ]
    assert found[0] == pytest.approx(found[1])


def test_texts_that_cannot_be_scored_are_refused(trained, lmx, file, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "data.json").write_text("[]")
    (tmp_path / "latin.txt").write_bytes(b"\xe9\xe8")
    for words, message in {
        (): "write lmx eval RUN FILE ...",
        (str(tmp_path / "none.txt"),): "there is no ",
        (str(tmp_path / "empty.txt"),): "empty.txt has 0 characters",
        (str(tmp_path / "latin.txt"),): "not UTF-8 (0xe9) at byte 0",
        (str(tmp_path / "data.json"),): "name it .jsonl; or name it .txt",
        (file, "--stride", "17"): "windows of 16 tokens, each 17 after the last",
        (file, "--batch", "0"): "SlidingWindow.batch_size is 0: it must be at least 1",
    }.items():
        status, out, err = lmx("eval", trained.run, *words)
        assert (status, out) == (2, "") and message in err
