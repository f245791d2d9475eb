"""A run's steps once more: the same bits, and none of its files touched."""

import json
import random
import shutil

import pytest

from lmx.analysis.history import RecordedRun
from lmx.analysis.replay import replay
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
    """Finished runs by their meshes, all of whose steps were logged."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: train_run("tiny", tiny(*WORDS, *mesh), folder / name).path
        for name, mesh in MESHES.items()
    }


@pytest.fixture(scope="module")
def ran(runs):
    return runs["one device"]


@pytest.fixture(scope="module")
def pasts(runs):
    return {name: RecordedRun.open(path) for name, path in runs.items()}


@pytest.fixture(scope="module")
def past(pasts):
    return pasts["one device"]


@pytest.mark.parametrize("mesh", MESHES)
def test_twenty_random_steps_have_the_logged_loss_to_the_bit(runs, pasts, mesh):
    ran, past = runs[mesh], pasts[mesh]
    before = files(ran)
    logged = {row["step"]: row for row in read_metrics(ran)}
    steps = random.Random(0).sample(range(1, STEPS + 1), 20)
    begun = set()
    for step in steps:
        found = replay(past, step)
        begun.add(found.start_step)
        assert found.step == step and found.start_step < step
        for n in range(found.start_step + 1, step + 1):
            assert found.replayed[n]["loss"] == logged[n]["loss"]
            assert [found.replayed[n]["grad_norm/layer/0"]] == logged[n][
                "grad_norm/layer"
            ]
        assert found.differences == [] and found.num_compared == 11 * (
            step - found.start_step
        )
    assert begun == {0, 10, 15, 20}  # the state of step 24 comes after all of them
    assert files(ran) == before


def test_a_step_goes_on_from_the_newest_state_before_it(past):
    assert [replay(past, step).start_step for step in (10, 11, 24)] == [0, 10, 20]


def test_what_is_bound_is_shown_with_what_it_changes(ran):
    past = RecordedRun.open(ran, ["Constant.peak_lr=0.02"])
    found = replay(past, 22)
    assert dict(past.changes) == {"schedule.peak": (0.01, 0.02)}
    assert {name for _, name, *_ in found.differences} >= {"learning_rate", "loss"}
    assert found.replayed[22]["learning_rate"] == pytest.approx(0.02)
    assert found.replayed[21]["loss"] == found.logged[21]["loss"]


def test_a_number_that_was_not_so_is_found(ran, past, tmp_path):
    path = tmp_path / "told"
    shutil.copytree(ran, path)
    lines = [*read_metrics(path)]
    lines[21]["grad_norm/layer"][0] += 1e-6
    lines[22]["loss"] = "NaN"
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    false = RecordedRun(path, past.config, {}, past.experiment, past.run)
    found = replay(false, 24).differences
    assert [(step, name) for step, name, *_ in found] == [
        (22, "grad_norm/layer/0"),
        (23, "loss"),
    ]


def test_data_that_a_run_left_out_are_left_out_again(ran, past, tmp_path):
    path = tmp_path / "rewound"
    shutil.copytree(ran, path)
    with (path / "ledger.jsonl").open("a") as ledger:
        line = {"step": 20, "hook": "Rewind", "status": "done", "data": [21, 24]}
        ledger.write(f"{json.dumps(line)}\n")
    rewound = RecordedRun(path, past.config, {}, past.experiment, past.run)
    assert [rewound.data_step(step) for step in (1, 20, 21, 22)] == [1, 20, 21, 25]
    found = replay(rewound, 23)
    run, state = past.run, past.restore_at_or_before(20)
    for step, data in ((21, 20), (22, 24), (23, 25)):
        state, metrics = run.step(state, run.read(run.data, run.seed, data))
        assert found.replayed[step]["loss"] == float(metrics["loss"])
    assert found.replayed[22]["loss"] != found.logged[22]["loss"]


def test_a_damaged_state_is_named_and_an_older_one_gone_on_from(
    ran, past, tmp_path, capsys
):
    path = tmp_path / "damaged"
    shutil.copytree(ran, path)
    state = path / "checkpoints" / "00000020"
    flip(state, "params.stack.cycles.0.blocks.0.mlp.up.w.value")
    damaged = RecordedRun(path, past.config, {}, past.experiment, past.run)
    found = replay(damaged, 22)
    assert found.start_step == 15 and not found.differences
    assert "00000020" in capsys.readouterr().err


def test_what_cannot_be_replayed_is_refused(ran, past, tmp_path):
    for step in (0, STEPS + 1):
        with pytest.raises(ConfigError, match="counted from 1"):
            replay(past, step)
    for words in (["Decoder.depth=3"], ["Experiment.optimizer=@muon"]):
        with pytest.raises(ConfigError, match="state of step 20 has no"):
            replay(RecordedRun.open(ran, words), 22)
    with pytest.raises(ConfigError, match="is not a run"):
        RecordedRun.open(tmp_path)
    path = tmp_path / "other"
    shutil.copytree(ran, path)
    card = json.loads((path / "metadata.json").read_text())
    card["data"]["source"] += "?"
    (path / "metadata.json").write_text(json.dumps(card))
    with pytest.raises(ConfigError, match="data are not those that"):
        RecordedRun.open(path)
    assert RecordedRun.open(path, ["RepeatTask.vocab=7"]).changes
