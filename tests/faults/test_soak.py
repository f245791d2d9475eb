"""A run that is killed many times ends with the same bits as an undisturbed one."""

import importlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lmx
from lmx.faulttest.kill_point import (
    FIRST_ARRAY,
    KINDS,
    STARTUP,
    STEP,
    TIMED,
    TIMER,
    KillPoint,
)
from lmx.faulttest.process_group import Scenario
from lmx.faulttest.scenario import BASELINE, compare_killed
from lmx.run.run_dir import read_metadata
from tests.train.conftest import PAGE
from tests.xla_flags import FLAGS

ROOT = Path(__file__).parents[2]
WORDS = [
    "Experiment.hooks=[@Evaluate()]",
    "Evaluate.data=@RepeatTask()",
    "Evaluate.batches=1",
    "Evaluate.every=6",
    "Decoder.dropout=0.1",
    "Mesh.data=1",
]
STATES = {"start", "init", "compile", "data", "step", "log", "save", "Evaluate"}
STATES |= {"restore", "stop", "lost", "down"}


@pytest.fixture
def cpu(monkeypatch):
    """CPU devices for every started process, with fast compilation."""
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}")


def sample_timed_kills(seed: int, kills: int) -> list[KillPoint]:
    """Kill points at random times, a quarter of them during startup."""
    rng, latest = random.Random(seed), {STARTUP: 3.0, TIMER: 1.0}
    kinds = [rng.choice([STARTUP, TIMER, TIMER, TIMER]) for _ in range(kills)]
    return [KillPoint(kind, delay=rng.uniform(0, latest[kind])) for kind in kinds]


def compare(
    folder: Path,
    steps: int,
    kill_points: list[KillPoint],
    *words: str,
    module: str = "",
) -> list[dict]:
    """Compares runs that are killed at these points with an undisturbed one."""
    overrides = [*WORDS, f"Experiment.steps={steps}", *words]
    overrides.append("CheckpointPolicy.every=8")
    imports = [module] if module else []
    for name in imports:
        importlib.import_module(name)
    scenario = Scenario(
        config=lmx.load_experiment(PAGE, overrides),
        file=f"{PAGE}",
        overrides=overrides,
        imports=imports,
        folder=folder,
    )
    return compare_killed(scenario, kill_points)[1]


def check(folder: Path, runs: list[dict], kills: int) -> None:
    """Everything that a soak test must show."""
    statuses = [a["statuses"] for run in runs for a in run["attempts"] if a["killed"]]
    assert statuses == [[-9]] * kills
    for number, run in enumerate(runs, start=1):
        for name in ("losses", "metrics", "final_metrics", "batches", "hooks"):
            assert run[name]["passed"], (name, run[name])
        for name in ("state", "replayed"):
            assert run[name]["passed"], (name, run[name])
        seconds, wall = run["timing"]["seconds"], run["timing"]["wall"]
        assert seconds.keys() <= STATES
        assert sum(seconds.values()) == pytest.approx(wall, rel=0.01)
        remaining = [
            sorted(path.name for path in (folder / name / "checkpoints").iterdir())
            for name in (f"killed-{number}", BASELINE)
        ]
        assert remaining[0] == remaining[1]
    assert sum(len(run["replayed"]["each"]) for run in runs) > kills // 10


@pytest.mark.faults
def test_ten_kills_at_random_times_change_no_bit(cpu, tmp_path):
    check(tmp_path, compare(tmp_path, 400, sample_timed_kills(10, kills=10)), 10)


@pytest.mark.faults
def test_kills_of_a_distillation_by_user_code_change_no_bit(cpu, tmp_path):
    """A module of the user has the loss, with a teacher, and a field of the batch."""
    words = ["Experiment.loss=@Distill()", "Distill.teacher=@Decoder"]
    words += ["Experiment.data=@Tempered()", "Tempered.source=@RepeatTask()"]
    words.append("Experiment.trainable=['*norm*', 'head*']")
    points = [KillPoint(STEP, 11, 0.5), KillPoint(FIRST_ARRAY, 16)]
    runs = compare(tmp_path, 24, points, *words, module="tests.train.own_loss")
    check(tmp_path, runs, 2)
    assert [run["attempts"][2]["start_step"] for run in runs] == [8]
    assert "tests.train.own_loss" in read_metadata(tmp_path / BASELINE)["imports"]


@pytest.mark.nightly
def test_a_hundred_kills_at_random_times_change_no_bit(cpu, tmp_path):
    check(tmp_path, compare(tmp_path, 3000, sample_timed_kills(100, kills=100)), 100)


@pytest.mark.nightly
def test_data_that_differ_between_processes_are_detected(cpu, tmp_path):
    words = ["Experiment.data=@Faulty()", "Faulty.source=@RepeatTask()"]
    words.append("Faulty.seed_by_process=True")
    points = [KillPoint(STEP, 12, 0.5)]
    (run,) = compare(tmp_path, 16, points, *words, module="tests.faults.faulty")
    assert run["batches"]["differ"][0].startswith("1: ")
    assert not any(run[name]["passed"] for name in ("batches", "losses", "state"))


@pytest.mark.faults
def test_a_faulttest_kills_at_every_kind_of_point_and_on_other_meshes(cpu, tmp_path):
    shutil.copy(PAGE, tmp_path)
    words = ["faulttest", "tiny.gin", *WORDS, "--steps", "48", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "lmx.cli.main", *words, "--out", "test"],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "test" / "report.json").read_text())
    (same,), other = report["same_mesh"], report["other_mesh"]
    *killed, last = same["attempts"]
    kinds = {attempt["kill_point"]["kind"] for attempt in killed}
    assert kinds == {*KINDS} - {*TIMED}
    assert [a["statuses"] for a in killed] == [[-9]] * 8 and not last["killed"]
    assert same["losses"]["compared"] >= 48 and same["state"]["compared"] > 30
    assert same["hooks"]["compared"] == 8
    topologies = [attempt["topology"] for attempt in other["attempts"]]
    assert "2 processes" in topologies[1] and "1 process of 4" in topologies[2]
    assert other["attempts"][1]["statuses"] == [75, -9]
    assert other["losses"]["largest_error"] <= other["losses"]["rtol"] == 1e-4
    assert other["final_metrics"]["compared"] == 8 and other["state"]["distance"] < 1e-3
