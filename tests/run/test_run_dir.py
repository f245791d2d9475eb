"""The folder of a run: whole or not there, of one run, and never torn."""

import json
import math

import pytest

from lmx.config.registry import ConfigError
from lmx.data.tokenizer.base import ByteCodec
from lmx.run import run_dir
from lmx.run.run_dir import RunDir, read_last_metrics, read_metrics

CARD = {"name": "tiny", "data": {"source": "echo"}}


@pytest.fixture
def claim(tmp_path, tiny):
    """Claims `runs/a` for the tiny experiment under overrides, after its last claim."""
    made = []

    def claim(*overrides, card=CARD, codec=None, path="runs/a", accept=()):
        if made:
            made.pop().close()
        config = tiny(*overrides)
        made.append(RunDir.claim(tmp_path / path, config, card, codec, accept))
        return made[0]

    yield claim
    for claimed in made:
        claimed.close()


def names(path):
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*"))


def test_a_new_folder_has_the_experiment_the_card_and_the_tokenizer(claim, tiny):
    path = claim(tokenizer=ByteCodec()).path
    assert names(path) == [
        "card.json", "experiment.gin", "experiment.json", "lock", "tokenizer.json",
    ]  # fmt: skip
    assert json.loads((path / "experiment.json").read_text()) == json.loads(
        tiny().json()
    )
    assert json.loads((path / "card.json").read_text()) == CARD


def test_a_claim_that_fails_leaves_nothing(claim, tmp_path, monkeypatch):
    def fail(path, config):
        (path / "half").write_text("written")
        raise OSError(28, "No space left on device", "half")

    monkeypatch.setattr(run_dir, "_write", fail)
    with pytest.raises(ConfigError, match="No space left on device.*name another"):
        claim(path="deep/er/run")
    assert names(tmp_path) == []


def test_an_empty_folder_may_be_claimed_and_a_full_one_not(claim, tmp_path):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert claim().path.is_dir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("my only copy")
    with pytest.raises(ConfigError, match="b is there and is no run: name another"):
        claim(path="b")
    assert names(tmp_path / "b") == ["thesis.tex"]


def test_another_experiment_is_refused_with_what_differs(claim):
    before = (claim().path / "experiment.json").read_text()
    with pytest.raises(ConfigError) as refused:
        claim("Experiment.seed=1", "Decoder.depth=3")
    assert "holds another run: name another folder" in str(refused.value)
    assert "  seed: 0 there, 1 here" in str(refused.value)
    assert "  model.depth: 2 there, 3 here" in str(refused.value)
    assert (claim().path / "experiment.json").read_text() == before


def test_other_data_under_the_same_experiment_are_refused(claim):
    claim()
    with pytest.raises(ConfigError, match="data have changed since.*bring back"):
        claim(metadata={**CARD, "data": {"source": "noise"}})


def test_what_is_named_may_differ_and_is_on_the_card(claim):
    claim()
    card = {**CARD, "run_id": "new", "data": {"source": "noise"}}
    with pytest.raises(ConfigError, match="  seed: 0 there, 1 here"):
        claim(
            "Experiment.seed=1",
            "RepeatTask.batch_size=4",
            metadata=card,
            allow_change=["data"],
        )
    with pytest.raises(ConfigError, match="no field 'Experiment.sed'"):
        claim("Experiment.seed=1", allow_change=["Experiment.sed"])
    words = ["Experiment.seed=1", "RepeatTask.batch_size=4"]
    path = claim(*words, metadata=card, allow_change=["data", "Experiment.seed"]).path
    told = json.loads((path / "card.json").read_text())
    assert told["run_id"] == "new" and told["data"] == {"source": "noise"}
    changes = {t["name"]: (t["was"], t["now"]) for t in told["accepted"]}
    assert changes == {
        "seed": ("0", "1"), "data.batch": ("8", "4"), "data source": ("echo", "noise"),
    }  # fmt: skip
    claim(*words, metadata=card)  # from now on it is this one
    again = claim(*words, "Experiment.steps=9", metadata=card, allow_change=["steps"])
    told = json.loads((again.path / "card.json").read_text())
    assert len(told["accepted"]) == 4


def test_what_is_only_execution_may_change(claim):
    path = claim().path
    claim("Mesh.fsdp=4", "CheckpointPolicy.every=2", "Experiment.log_every=3")
    assert "fsdp = 4" in (path / "experiment.gin").read_text()


@pytest.mark.parametrize("name", ["experiment.json", "card.json"])
def test_a_record_that_cannot_be_read_is_told(claim, name):
    path = claim().path
    (path / name).write_text("{")
    with pytest.raises(ConfigError, match="record of .* cannot be read.*bring back"):
        claim()


def logged(directory, *steps):
    directory.begin(0)
    for step in steps:
        directory.log_metrics(step, {"loss": 1.0 / step})
    directory.close()


def test_what_was_logged_beyond_the_restored_step_is_dropped(claim):
    run = claim()
    logged(run, 1, 2, 3, 4)
    again = claim()
    again.begin(2)
    again.log_metrics(3, {"loss": 5.0})
    again.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(run.path)] == [
        (1, 1.0), (2, 0.5), (3, 5.0),
    ]  # fmt: skip


def test_a_line_torn_by_a_kill_is_dropped(claim):
    run = claim()
    logged(run, 1, 2)
    metrics = run.path / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 3, "lo')
    assert [row["step"] for row in read_metrics(run.path)] == [1, 2]
    again = claim()
    again.begin(3)
    again.log_metrics(4, {"loss": 0.0})
    again.close()
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [
        1, 2, 4,
    ]  # fmt: skip


def test_numbers_that_json_lacks_are_words_that_float_reads(claim):
    run = claim()
    run.begin(0)
    run.log_metrics(1, {"a": math.nan, "b": math.inf, "c": [-math.inf, 1.0], "d": 0.1})
    run.close()
    line = (run.path / "metrics.jsonl").read_text().strip()
    wanted = '{"step": 1, "a": "NaN", "b": "Infinity", "c": ["-Infinity", 1.0]'
    assert line == f'{wanted}, "d": 0.1}}'
    assert math.isnan(float(read_last_metrics(run.path)["a"]))


def test_the_newest_value_of_each_metric_is_the_last(claim):
    run = claim()
    run.begin(0)
    run.log_metrics(1, {"loss": 2.0, "sample": "x"})
    run.log_metrics(2, {"loss": 1.0})
    run.close()
    assert read_last_metrics(run.path) == {"step": 2, "loss": 1.0, "sample": "x"}


def test_facts_are_added_to_the_card(claim):
    run = claim()
    assert not run.finished
    run.update(final={"loss": 1.0})
    assert json.loads((run.path / "card.json").read_text()) == CARD | {
        "final": {"loss": 1.0}
    }
    assert run.finished
