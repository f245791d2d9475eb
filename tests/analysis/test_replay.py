"""A replay gives the same bits as the run, and changes none of its files."""

import dataclasses
import json
import random
import shutil

import pytest

from lmx.analysis.replay import RecordedRun, replay
from lmx.config.registry import ConfigError
from lmx.run.run_dir import read_metrics
from lmx.train.trainer import train_run
from tests.train.checkpoint.damage import flip

pytestmark = pytest.mark.faults

STEPS, EVERY = 24, 5
WORDS = [
    f"Experiment.steps={STEPS}",
    f"CheckpointPolicy.every={EVERY}",
    "CheckpointPolicy.keep=4",
    "Decoder.dropout=0.1",
    "Decoder.depth=1",
]
MESHES = {"one device": ["Mesh.data=1"], "four": ["Mesh.data=2", "Mesh.fsdp=2"]}


def files(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Folders of finished runs by mesh. Every step is logged."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: train_run("tiny", tiny(*WORDS, *mesh), folder / name).path
        for name, mesh in MESHES.items()
    }


@pytest.fixture(scope="module")
def finished(runs):
    return runs["one device"]


@pytest.fixture(scope="module")
def all_recorded(runs):
    return {name: RecordedRun.open(path) for name, path in runs.items()}


@pytest.fixture(scope="module")
def recorded(all_recorded):
    return all_recorded["one device"]


@pytest.fixture
def copy(finished, recorded, tmp_path):
    """A copy of the run's folder, and the run opened there without compiling again."""
    path = tmp_path / "copy"
    shutil.copytree(finished, path)
    return path, dataclasses.replace(recorded, folder=path)


@pytest.mark.parametrize("mesh", MESHES)
def test_twenty_random_steps_have_the_logged_loss_to_the_bit(runs, all_recorded, mesh):
    path, recorded = runs[mesh], all_recorded[mesh]
    before = files(path)
    logged = {row["step"]: row for row in read_metrics(path)}
    starts = set()
    for step in random.Random(0).sample(range(1, STEPS + 1), 20):
        found = replay(recorded, step)
        start = found.start_step
        starts.add(start)
        assert found.step == step and start < step
        for n in range(start + 1, step + 1):
            row = found.replayed[n]
            assert row["loss"] == logged[n]["loss"]
            assert [row["grad_norm/layer/0"]] == logged[n]["grad_norm/layer"]
        assert found.differences == []
        assert found.num_compared == 11 * (step - start)
    assert starts == {0, 10, 15, 20}  # the state of step 24 is after all of them
    assert files(path) == before


def test_a_replay_starts_from_the_newest_state_before_the_step(recorded):
    assert [replay(recorded, step).start_step for step in (10, 11, 24)] == [0, 10, 20]


def test_overrides_are_reported_with_what_they_change(finished):
    recorded = RecordedRun.open(finished, ["Constant.peak_lr=0.02"])
    found = replay(recorded, 22)
    assert dict(recorded.changes) == {"schedule.peak_lr": (0.01, 0.02)}
    assert {name for _, name, *_ in found.differences} >= {"learning_rate", "loss"}
    assert found.replayed[22]["learning_rate"] == pytest.approx(0.02)
    assert found.replayed[21]["loss"] == found.logged[21]["loss"]


def test_a_changed_metric_is_found(copy):
    path, recorded = copy
    lines = [*read_metrics(path)]
    lines[21]["grad_norm/layer"][0] += 1e-6
    lines[22]["loss"] = "NaN"
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    differences = replay(recorded, 24).differences
    assert [(step, name) for step, name, *_ in differences] == [
        (22, "grad_norm/layer/0"),
        (23, "loss"),
    ]


def test_data_that_the_run_skipped_are_skipped(copy, recorded):
    path, rewound = copy
    with (path / "ledger.jsonl").open("a") as ledger:
        line = {"step": 20, "hook": "Rewind", "status": "done", "data": [21, 24]}
        ledger.write(f"{json.dumps(line)}\n")
    assert [rewound.data_step(step) for step in (1, 20, 21, 22)] == [0, 19, 20, 24]
    found = replay(rewound, 23)
    run, state = recorded.run, recorded.restore_before(21)
    for step, data_step in ((21, 20), (22, 24), (23, 25)):
        batch = run.load_batch(run.data, run.seed, data_step)
        state, metrics = run.step(state, batch)
        assert found.replayed[step]["loss"] == float(metrics["loss"])
    assert found.replayed[22]["loss"] != found.logged[22]["loss"]


def test_a_damaged_state_is_named_and_an_older_one_is_used(copy, capsys):
    path, damaged = copy
    state = path / "checkpoints" / "00000020"
    flip(state, "params.stack.cycles.0.blocks.0.mlp.up.w.value")
    found = replay(damaged, 22)
    assert found.start_step == 15 and not found.differences
    assert "00000020" in capsys.readouterr().err


def test_invalid_steps_overrides_runs_and_data_are_refused(
    finished, recorded, copy, tmp_path
):
    for step in (0, STEPS + 1):
        with pytest.raises(ConfigError, match="counted from 1"):
            replay(recorded, step)
    for words in (["Decoder.depth=3"], ["Experiment.optimizer=@muon"]):
        with pytest.raises(ConfigError, match="checkpoint 20 does not fit"):
            replay(RecordedRun.open(finished, words), 22)
    with pytest.raises(ConfigError, match="is not a run"):
        RecordedRun.open(tmp_path)
    path, _ = copy
    metadata = json.loads((path / "metadata.json").read_text())
    metadata["data"]["source"] += "?"
    (path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ConfigError, match="data have changed since"):
        RecordedRun.open(path)
    assert RecordedRun.open(path, ["RepeatTask.vocab=7"]).changes
