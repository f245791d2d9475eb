"""A run that is killed again and again ends in the bits of one that never was."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lmx
from lmx.faulttest.kill_point import (
    KINDS,
    STARTUP,
    STEP,
    TIMER,
    KillPoint,
    sample_timed_kills,
)
from lmx.faulttest.process_group import Scenario
from lmx.faulttest.runner import compare_killed
from lmx.faulttest.scenario import BASELINE, KillSchedule, ProgressBar
from tests.faults.fickle import Fickle
from tests.train.conftest import PAGE
from tests.xla_flags import FLAGS

ROOT = Path(__file__).parents[2]
WORDS = [
    "Experiment.hooks=[@Evaluate()]",
    "Evaluate.data=@RepeatTask()",
    "Evaluate.every=6",
    "Decoder.dropout=0.1",
    "Mesh.data=1",
]
STATES = {"start", "restore", "compile", "data", "step", "log", "Save", "Evaluate"}
STATES |= {"stop", "lost", "down"}


@pytest.fixture
def cpu(monkeypatch):
    """The devices of every process that is started: CPUs, quick to compile for."""
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}")


def shared(
    folder: Path, steps: int, moments: list[KillPoint], *words: str, module: str = ""
) -> list[dict]:
    """What runs killed at these moments share with one that was not."""
    told = [*WORDS, f"Experiment.steps={steps}", "CheckpointPolicy.every=8", *words]
    trial = Scenario(
        module="lmx.cli.main",
        config=f"{PAGE}",
        overrides=told,
        imports=[module] if module else [],
        folder=folder,
    )
    plan = KillSchedule.from_config(lmx.load_experiment(PAGE, told))
    _, found = compare_killed(
        trial, plan, moments, ProgressBar(len(moments) + 2, steps)
    )
    return found["same_mesh"]


def check(folder: Path, runs: list[dict], kills: int) -> None:
    """All that a soak must show."""
    died = [life["statuses"] for run in runs for life in run["lives"] if life["died"]]
    assert died == [[-9]] * kills
    for number, run in enumerate(runs, start=1):
        for name in ("losses", "metrics", "batches", "ledger", "state", "replays"):
            assert run[name]["holds"], (name, run[name])
        account = run["account"]
        assert account["seconds"].keys() <= STATES
        assert sum(account["seconds"].values()) == pytest.approx(
            account["wall"], rel=0.01
        )
        left = [
            sorted(path.name for path in (folder / name / "checkpoints").iterdir())
            for name in (f"killed-{number}", BASELINE)
        ]
        assert left[0] == left[1]
    assert sum(run["replays"]["compared"] for run in runs) > kills // 10


@pytest.mark.faults
def test_ten_kills_at_random_times_change_no_bit(cpu, tmp_path):
    check(tmp_path, shared(tmp_path, 400, sample_timed_kills(10, kills=10)), 10)


@pytest.mark.nightly
def test_a_hundred_kills_at_random_times_change_no_bit(cpu, tmp_path):
    check(tmp_path, shared(tmp_path, 3000, sample_timed_kills(100, kills=100)), 100)


@pytest.mark.nightly
def test_data_that_change_with_the_process_are_found_out(cpu, tmp_path):
    words = ["Experiment.data=@Fickle()", "Fickle.source=@RepeatTask()"]
    moments = [KillPoint(STEP, 12, 0.5)]
    (run,) = shared(tmp_path, 16, moments, *words, module=Fickle.__module__)
    assert run["batches"]["differ"][0].startswith("1: ")
    assert not any(run[name]["holds"] for name in ("batches", "losses", "state"))


@pytest.mark.faults
def test_lmx_prove_kills_in_every_phase_and_elsewhere_and_certifies_it(cpu, tmp_path):
    shutil.copy(PAGE, tmp_path)
    words = ["faulttest", "tiny.gin", *WORDS, "--steps", "48", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "lmx.cli.main", *words, "--out", "proof"],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    told = json.loads(done.stdout)
    assert told == json.loads((tmp_path / "proof" / "certificate.json").read_text())
    (same,), other = told["same_mesh"], told["other_mesh"]
    *killed, last = same["lives"]
    assert {life["moment"]["kind"] for life in killed} == {*KINDS} - {STARTUP, TIMER}
    assert [life["statuses"] for life in killed] == [[-9]] * 8 and not last["died"]
    assert same["losses"]["compared"] >= 48 and same["state"]["compared"] > 30
    assert same["ledger"]["compared"] == 8
    places = [life["place"] for life in other["lives"]]
    assert "2 processes" in places[1] and "1 process of 4" in places[2]
    assert other["lives"][1]["statuses"] == [75, -9]
    assert other["losses"]["worst"] <= other["losses"]["tolerance"] == 1e-4
    assert other["evaluations"]["compared"] == 8 and other["parameters"]["all"] < 1e-3
