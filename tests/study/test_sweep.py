"""Points of sweeps, and workers that share their runs."""

import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import jax
import pytest

from lmx.config.registry import ConfigError
from lmx.config.resolve import load
from lmx.models.params import train_flops_per_token
from lmx.run.lock import acquire_lock
from lmx.run.run_dir import SCHEMA, write_initial_files
from lmx.study import sweep
from lmx.study.sweep import (
    CLAIMS,
    FAILED,
    Sweep,
    SweepRun,
    list_status,
    read_failure,
    run_sweep,
)

TINY = Path(__file__).parents[1] / "train" / "tiny.gin"


@pytest.fixture
def list_runs(tmp_path):
    """The runs of a sweep of the tiny config with these bindings."""

    def list_runs(text):
        file = tmp_path / "sweep.gin"
        file.write_text(f"Sweep.experiment = '{TINY}'\n{text}")
        return load([file], root=Sweep).build().list_runs()

    return list_runs


def test_a_grid_has_all_combinations(list_runs):
    runs = list_runs("""
Sweep.points = @Grid()
Sweep.settings = {'Mesh.data': 1}
Grid.values = {
  'Constant.peak_lr': (0.01, 0.02),
  'Experiment.optimizer': ('@adamw', '@muon'),
}
""")
    assert [run.name for run in runs] == [
        *("peak_lr=0.01,optimizer=_adamw", "peak_lr=0.01,optimizer=_muon"),
        *("peak_lr=0.02,optimizer=_adamw", "peak_lr=0.02,optimizer=_muon"),
    ]
    assert runs[3].config.fields["schedule"].fields["peak_lr"] == 0.02
    assert runs[3].config.fields["optimizer"].name == "muon"
    assert all(run.arguments[1] == "Mesh.data=1" for run in runs)
    assert len({run.config.run_id() for run in runs}) == 4


def test_zipped_values_go_together_and_products_join_parts(list_runs):
    runs = list_runs("""
Sweep.points = @CrossProduct()
CrossProduct.parts = (@Zip(), @Grid())
Zip.values = {'Decoder.depth': (1, 2), 'Decoder.width': (16, 32)}
Grid.values = {'Experiment.seed': (0, 1)}
""")
    sizes = [run.config.fields["model"].fields for run in runs]
    pairs = [(size["depth"], size["width"]) for size in sizes]
    assert pairs == [(1, 16), (1, 16), (2, 32), (2, 32)]
    assert [run.name for run in runs][:2] == ["depth=1,seed=0", "depth=1,seed=1"]


def test_random_values_are_within_their_ends_and_those_of_the_seed(list_runs):
    text = """
Sweep.points = @Random()
Random.ranges = {'Constant.peak_lr': (0.001, 0.1)}
Random.count = 8
"""
    names = [run.name for run in list_runs(text)]
    rates = [float(name.partition("=")[2]) for name in names]
    assert all(0.001 <= rate <= 0.1 for rate in rates)
    assert max(rates) / min(rates) > 5
    assert [run.name for run in list_runs(text)] == names
    assert [run.name for run in list_runs(f"{text}Random.seed = 1")] != names


LADDER = """
{0}.depths = (1, 2)
{0}.aspect_ratio = 8
{0}.head_dim = 4
"""


def test_a_ladder_grows_all_sizes_and_trains_its_tokens_per_parameter(list_runs):
    text = "Sweep.points = @Ladder()\nLadder.tokens_per_parameter = 3"
    runs = list_runs(text + LADDER.format("Ladder"))
    for run, depth in zip(runs, (1, 2), strict=True):
        model = run.config.fields["model"].fields
        assert (model["depth"], model["width"]) == (depth, 8 * depth)
        attention = model["attention"].fields
        assert attention["heads"] * attention["head_dim"] == 8 * depth
        leaves = jax.tree.leaves(run.config.build().abstract_model())
        parameters = sum(math.prod(leaf.shape) for leaf in leaves)
        assert run.config.fields["steps"] == math.ceil(3 * parameters / (8 * 16))


def test_each_budget_of_an_isoflop_sweep_is_met_by_every_model(list_runs):
    text = "Sweep.points = @IsoFLOP()\nIsoFLOP.budgets = (1e9, 1e10)"
    runs = list_runs(text + LADDER.format("IsoFLOP"))
    for run, budget in zip(runs, (1e9, 1e9, 1e10, 1e10), strict=True):
        flops = train_flops_per_token(run.config.build().abstract_model(), 16)
        assert run.config.fields["steps"] * 8 * 16 * flops == pytest.approx(
            budget, rel=0.02
        )
    with pytest.raises(ConfigError, match="step of depth 1 takes more than 100 FLOPs"):
        list_runs(text.replace("(1e9, 1e10)", "(100.0,)") + LADDER.format("IsoFLOP"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'Decoder.depth': (1, 1)}", "depth=1 and depth=1 are the same run"),
        ("{'Decoder.dpth': (1, 2)}", "point dpth=1: .* did you mean 'depth'"),
        ("{'Decoder.depth': (1, -2)}", "point depth=-2: .*from 1 to"),
        (
            "{'Experiment.trainable': (\"('h*',)\", \"('h?',)\")}",
            "have the name",
        ),
        ("{'Experiment.seed': ()}", "has no points"),
        ("{}", "has no points"),
    ],
)
def test_a_wrong_point_is_named_before_anything_runs(list_runs, text, message):
    with pytest.raises(ConfigError, match=message):
        list_runs(f"Sweep.points = @Grid()\nGrid.values = {text}")


def test_values_that_differ_in_the_last_digit_have_names_of_their_own(list_runs):
    values = "{'Constant.peak_lr': (0.1000001, 0.1000002)}"
    runs = list_runs(f"Sweep.points = @Grid()\nGrid.values = {values}")
    assert [run.name for run in runs] == ["peak_lr=0.1000001", "peak_lr=0.1000002"]


@pytest.mark.parametrize("ends", ["(0.0, 0.1)", "(0.1, 0.01)", "(-1, 1)"])
def test_a_range_without_a_low_and_a_high_end_is_refused(list_runs, ends):
    ranges = f"{{'Constant.peak_lr': {ends}}}"
    with pytest.raises(ConfigError, match="Random.ranges .* pairs of a low and a high"):
        list_runs(
            f"Sweep.points = @Random()\nRandom.count = 2\nRandom.ranges = {ranges}"
        )


def test_a_ladder_has_the_steps_of_the_settings_that_it_is_crossed_with(list_runs):
    text = """
Sweep.points = @CrossProduct()
CrossProduct.parts = (@Grid(), @Ladder())
Grid.values = {'RepeatTask.batch_size': (8, 16)}
"""
    runs = list_runs(text + LADDER.format("Ladder"))
    steps = [run.config.fields["steps"] for run in runs]
    assert steps[0] == pytest.approx(2 * steps[2], abs=1)
    assert steps[1] == pytest.approx(2 * steps[3], abs=1)


def test_lists_that_are_not_equally_long_are_not_zipped(list_runs):
    text = "{'Decoder.depth': (1, 2), 'Decoder.width': (16,)}"
    with pytest.raises(ConfigError, match="as many values of each setting"):
        list_runs(f"Sweep.points = @Zip()\nZip.values = {text}")


class Starter:
    """Stands for `lmx train`: a run is done if it has a file `done`."""

    def __init__(self, statuses=(), seconds=0.0):
        self.started, self.statuses, self.seconds = [], dict(statuses), seconds

    def __call__(self, run, path, pass_fds):
        assert len(pass_fds) == 1
        self.started.append(run.name)
        time.sleep(self.seconds)
        path.mkdir(parents=True, exist_ok=True)
        status = self.statuses.get(run.name, 0)
        if not status:
            (path / "done").touch()
        return status


@pytest.fixture
def runs(monkeypatch):
    """Six runs, whose state is that of `Starter`."""
    monkeypatch.setattr(sweep, "is_done", lambda folder: (folder / "done").exists())
    monkeypatch.setattr(sweep, "POLL", 0.01)
    config: Any = None
    return [SweepRun(f"{n}", [], config) for n in range(6)]


def test_workers_share_the_runs_and_each_is_trained_once(runs, tmp_path):
    starters = [Starter(seconds=0.02) for _ in range(3)]
    statuses = []

    def work(starter):
        statuses.append(run_sweep(runs, tmp_path, starter))

    threads = [threading.Thread(target=work, args=(each,)) for each in starters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert statuses == [0, 0, 0]
    assert sorted(sum((each.started for each in starters), [])) == [*"012345"]
    again = Starter()
    assert run_sweep(runs, tmp_path, again) == 0
    assert not again.started


def test_a_worker_waits_for_a_run_that_another_one_has(runs, tmp_path):
    claim = tmp_path / CLAIMS / "2"
    claim.mkdir(parents=True)
    lock = acquire_lock(claim)
    starter = Starter()
    thread = threading.Thread(target=run_sweep, args=(runs, tmp_path, starter))
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive() and "2" not in starter.started
    lock.release()  # as when the other worker dies
    thread.join(20)
    assert starter.started == [*"013452"]


def test_a_failed_run_is_not_tried_by_other_workers_but_by_a_later_start(
    runs, tmp_path
):
    failing = Starter({"1": 2, "4": 1})
    assert run_sweep(runs, tmp_path, failing) == 2
    assert read_failure(tmp_path, "1") == 2 and read_failure(tmp_path, "2") is None
    assert failing.started == [*"012345"]
    again = Starter()
    assert run_sweep(runs, tmp_path, again) == 0
    assert again.started == ["1", "4"]


@pytest.mark.parametrize("seconds", [-1e6, 1e6])
def test_failures_are_told_apart_though_the_clock_of_the_files_is_wrong(
    runs, tmp_path, seconds
):
    mark, now = tmp_path / CLAIMS / "1" / FAILED, time.time()

    def fail():
        assert run_sweep(runs[1:2], tmp_path, Starter({"1": 2})) == 2
        os.utime(mark, (now + seconds, now + seconds))

    class Worker(Starter):
        def __call__(self, run, path, pass_fds):
            if run.name == "0":
                fail()  # of another worker, meanwhile
            return super().__call__(run, path, pass_fds)

    assert run_sweep(runs[:2], tmp_path, worker := Worker()) == 2
    assert worker.started == ["0"]
    assert run_sweep(runs[:2], tmp_path, later := Starter()) == 0
    assert later.started == ["1"]


def test_a_stop_ends_the_worker_and_the_run_is_left_to_others(runs, tmp_path):
    stopping = Starter({"1": 143})
    assert run_sweep(runs, tmp_path, stopping) == 143
    assert stopping.started == ["0", "1"]
    assert run_sweep(runs, tmp_path, again := Starter()) == 0
    assert again.started == [*"12345"]


def test_a_folder_of_a_run_with_other_settings_is_refused(list_runs, tmp_path):
    text = "Sweep.points = @Grid()\nGrid.values = {'Decoder.depth': (1,)}\n"
    (run,) = list_runs(text)
    path = tmp_path / "out" / run.name
    path.mkdir(parents=True)
    metadata = {"schema": SCHEMA, "run_id": run.config.run_id()}
    write_initial_files(path, run.config, metadata, None)
    assert list_status([run], tmp_path / "out")[0]["state"] == "stopped"
    (other,) = list_runs(text + "Sweep.settings = {'Experiment.steps': 5}")
    message = "is a run with other settings: name"
    with pytest.raises(ConfigError, match=message):
        list_status([other], tmp_path / "out")
    with pytest.raises(ConfigError, match=message):
        run_sweep([other], tmp_path / "out", Starter())


def test_the_table_has_runs_that_were_not_started(list_runs, tmp_path):
    runs = list_runs(
        "Sweep.points = @Grid()\nGrid.values = {'Experiment.seed': (0, 1)}"
    )
    rows = list_status(runs, tmp_path / "out")
    assert [row["state"] for row in rows] == ["not started"] * 2
    assert rows[0]["steps"] == 10
