"""Workers of a sweep are killed, and every run is finished once, to the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmx.run.run_dir import read_last_metrics, read_metadata
from tests.xla_flags import FLAGS

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "train" / "tiny.gin"
SWEEP = f"""
Sweep.experiment = '{TINY}'
Sweep.settings = {{'Experiment.steps': 100, 'Mesh.data': 1, 'Decoder.depth': 1}}
Sweep.points = @Grid()
Grid.values = {{'Experiment.seed': (0, 1, 2)}}
"""
KILLS = 3


def start_worker(folder):
    """A worker, whose output is in `log`."""
    command = [sys.executable, "-m", "lmx.cli.main", "sweep", "run", "sweep.gin"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": FLAGS}
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=log
        )


def read_results(folder):
    """The last metrics of each run without times, and its losses."""
    results = {}
    for path in sorted((folder / "sweeps" / "sweep").glob("seed=*")):
        last = read_last_metrics(path)
        numbers = {k: v for k, v in last.items() if "second" not in k and k != "mfu"}
        results[path.name] = numbers, read_metadata(path)["losses"]
    return results


def test_killed_workers_leave_runs_that_others_resume_to_the_same_bits(tmp_path):
    """A worker that is killed leaves its run to another one, also in mid-run."""
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    for folder in (plain, killed):
        folder.mkdir()
        (folder / "sweep.gin").write_text(SWEEP)
    assert start_worker(plain).wait(240) == 0
    rng = random.Random(0)
    for _ in range(KILLS):
        worker = start_worker(killed)
        time.sleep(rng.uniform(1.0, 9.0))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    workers = [start_worker(killed) for _ in range(2)]
    assert [worker.wait(240) for worker in workers] == [0, 0]
    expected, found = read_results(plain), read_results(killed)
    assert len(found) == 3
    assert json.dumps(found) == json.dumps(expected)
    log = (killed / "log").read_text()
    assert log.count("tiny: step 100/100") == 3  # each was finished by one worker
    assert all(f"{name}: sweeps" in log for name in found)
