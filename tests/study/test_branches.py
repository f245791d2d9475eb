"""Branches of a run with a WSD schedule: their steps, their bits and their cost."""

import json
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

import lmx
from lmx.cli.main import main
from lmx.config.registry import ConfigError
from lmx.config.resolve import load
from lmx.run.overview import list_runs
from lmx.run.run_dir import read_metadata
from lmx.study import sweep
from lmx.study.sweep import Sweep, run_sweep
from lmx.train.checkpoint.manager import CheckpointDir
from lmx.train.checkpoint.reader import CheckpointReader
from lmx.train.experiment import load_experiment
from lmx.train.optim.schedule import WSD

TINY = Path(__file__).parents[1] / "train" / "tiny.gin"
TEXT = f"""
Sweep.experiment = '{TINY}'
Sweep.points = @Branches()
Sweep.settings = {{
  'Experiment.schedule': '@WSD()', 'WSD.peak_lr': 0.01, 'WSD.warmup_steps': 2,
  'WSD.decay_fraction': 0.5, 'Experiment.steps': 12, 'Mesh.data': 1,
  'Decoder.depth': 1, 'CheckpointPolicy.every': 3, 'CheckpointPolicy.keep': 1,
}}
Branches.fractions = (0.5, 0.83)
"""


@pytest.fixture
def parse(tmp_path):
    def parse(text=TEXT):
        (tmp_path / "sweep.gin").write_text(text)
        return load([tmp_path / "sweep.gin"], root=Sweep).build().list_runs()

    return parse


@pytest.mark.parametrize("steps", [7, 12, 997, 200_000])
@pytest.mark.parametrize("fraction", [0.1, 0.2, 1 / 3, 0.9])
def test_no_step_before_a_decay_has_another_rate_than_in_a_longer_run(steps, fraction):
    """Compared to the bit with a run twice as long, over the last 1000 of the steps."""
    schedule = WSD(peak_lr=0.3, warmup_steps=3, decay_fraction=fraction)
    decay = schedule.find_decay(steps)
    counts = np.arange(max(decay - 1000, 0), steps)
    short, long = (
        np.asarray(jax.jit(jax.vmap(schedule.build(n)))(counts))
        for n in (steps, 2 * steps)
    )
    before = counts < decay
    np.testing.assert_array_equal(short[before], long[before])
    assert (short[counts > decay + 1] < long[counts > decay + 1]).all()


def start(run, path, pass_fds):
    """Trains in this process."""
    assert len(pass_fds) == 1
    lmx.train_run(load_experiment(TINY, run.arguments[1:]), path)
    return 0


@pytest.mark.study
def test_a_branch_ends_with_the_bits_of_a_run_of_its_own_and_is_counted_once(
    parse, tmp_path
):
    runs, folder = parse(), tmp_path / "sweeps" / "x"
    assert [run.name for run in runs] == ["steps=12", "steps=6", "steps=10"]
    assert [run.first_step for run in runs] == [0, 4, 6]
    assert run_sweep(runs, folder, start) == 0
    trunk = CheckpointDir(folder / "steps=12" / "checkpoints")
    assert trunk.list_steps() == [4, 6, 12]  # 3 and 9 are pruned
    alone = load_experiment(TINY, [*runs[0].arguments[1:], "Experiment.steps=6"])
    lmx.train_run(alone, tmp_path / "alone")
    roots = [
        CheckpointReader(path / "checkpoints" / "00000006").read_metadata()["root"]
        for path in (folder / "steps=6", tmp_path / "alone")
    ]
    assert roots[0] == roots[1]  # parameters and optimizer state
    rows = {row["run"].rpartition("=")[2]: row for row in list_runs(folder)}
    assert [rows[n]["tokens"] for n in ("12", "6", "10")] == [1536, 768, 1280]
    own = sum(row["own_flops"] for row in rows.values())
    assert own == pytest.approx(rows["12"]["flops"] * (12 + 2 + 4) / 12)
    assert rows["6"]["flops"] == int(read_metadata(tmp_path / "alone")["flops"])
    assert run_sweep(runs, folder, fail) == 0  # nothing is left to train


def fail(run, path, pass_fds):
    return 2


def test_the_plan_counts_the_common_steps_once(parse, tmp_path, capsys):
    """Against the same lengths as runs of their own."""
    parse()
    grid = TEXT.replace("@Branches()", "@Grid()").replace(
        "Branches.fractions = (0.5, 0.83)",
        "Grid.values = {'Experiment.steps': (12, 6, 10)}",
    )
    (tmp_path / "grid.gin").write_text(grid)
    plans = []
    for name in ("sweep.gin", "grid.gin"):
        with pytest.raises(SystemExit) as stop:
            main(["sweep", "plan", str(tmp_path / name), "--json"])
        assert stop.value.code == 0
        plans.append(json.loads(capsys.readouterr().out))
    pairs = zip(*(plan["runs"] for plan in plans), (12, 2, 4), strict=True)
    for ours, other, own in pairs:
        assert ours["D"] == other["D"] == other["tokens"]
        for name in ("tokens", "FLOPs", "with attention", "causal", "hours"):
            share = own / (other["D"] / 128)
            assert ours[name] == pytest.approx(other[name] * share)
    assert plans[0]["total"]["tokens"] == 18 * 128


class Trainer:
    """Stands for `lmx train`: leaves checkpoints, and is done unless it fails."""

    def __init__(self, steps, status=0):
        self.steps, self.status, self.started = steps, status, []

    def __call__(self, run, path, pass_fds):
        self.started.append((run.name, run.arguments[-1]))
        for step in self.steps:
            (path / "checkpoints" / f"{step:08d}").mkdir(parents=True, exist_ok=True)
        path.mkdir(parents=True, exist_ok=True)
        if not self.status:
            (path / "done").touch()
        return self.status


@pytest.fixture
def runs(parse, monkeypatch):
    """The runs, of which any folder with a file `done` is done."""
    monkeypatch.setattr(sweep, "is_done", lambda folder: (folder / "done").exists())
    monkeypatch.setattr(sweep, "_check_same", lambda run, path: None)
    monkeypatch.setattr(sweep, "POLL", 0.01)
    return parse()


def test_a_branch_begins_when_its_trunk_has_the_checkpoint(runs, tmp_path):
    trunk, first, second = runs
    waiting = threading.Thread(target=run_sweep, args=([first], tmp_path, Trainer([])))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    assert run_sweep([trunk], tmp_path, Trainer([4, 6], status=143)) == 143
    waiting.join(20)
    assert (tmp_path / first.name / "done").exists()
    rest = Trainer([4, 6])
    assert run_sweep(runs, tmp_path, rest) == 0
    path = f"InitFrom.path='{tmp_path / trunk.name}'"
    assert rest.started[1:] == [(second.name, path)]


def test_branches_of_a_trunk_that_fails_or_lacks_the_checkpoint_do_not_wait(
    runs, tmp_path, capsys
):
    failing = Trainer([], status=3)
    assert run_sweep(runs, tmp_path, failing) == 3
    assert len(failing.started) == 1
    assert run_sweep(runs, tmp_path, Trainer([4])) == 2  # the trunk is done without 6
    assert "steps=12 has no checkpoint 6" in capsys.readouterr().err
    assert (tmp_path / "steps=6" / "done").exists()


CONSTANT = TEXT.replace("'@WSD()', 'WSD.peak_lr': 0.01,", "'@Constant()',").replace(
    "'WSD.warmup_steps': 2,\n  'WSD.decay_fraction': 0.5, ", ""
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CONSTANT, "needs Experiment.schedule = @WSD"),
        (TEXT.replace("(0.5,", "(0.1,"), r"\[1, 10\] steps would decay from \[1, 6\]"),
        (TEXT.replace("0.83", "0.99"), r"\[6, 12\] steps .* shorter than .*, 12"),
        (TEXT.replace("0.83", "1.0"), "Branches.fractions .* below 1"),
        (TEXT.replace("0.83", "0.5"), "are the same run"),
        (TEXT.replace("0.5, 0.83", ""), "Change Branches.fractions"),
    ],
)
def test_branches_that_cannot_be_are_refused(parse, text, message):
    with pytest.raises(ConfigError, match=message):
        parse(text)


def test_each_size_has_a_trunk_of_its_own_and_branches_come_last(parse):
    product = TEXT.replace("= @Branches()", "= @CrossProduct()")
    parts = "Grid.values = {'Experiment.seed': (0, 1)}\nCrossProduct.parts = "
    runs = parse(f"{product}{parts}(@Grid(), @Branches())")
    assert [run.trunk for run in runs[3:]] == [None, *["seed=1,steps=12"] * 2]
    with pytest.raises(ConfigError, match="Branches must be the last"):
        parse(f"{product}{parts}(@Branches(), @Grid())")
