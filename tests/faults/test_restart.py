"""A supervisor restarts a run, alone or with its peers."""

import os
import signal
import socket
import time

import pytest

from lmx.run.goodput import read_timing, total_seconds
from lmx.run.run_dir import read_metrics
from tests.faults.trainer import children, wait_for_exit

pytestmark = pytest.mark.faults


def kill(process):
    """Kills the run of a supervisor."""
    (child,) = children(process)
    os.kill(child, signal.SIGKILL)


def test_a_killed_run_restarts_and_its_timing_adds_up(trainer, tmp_path):
    run = trainer.gated("--run", "a", "--restarts", 5, at="6, 10")
    trainer.wait(run, lambda: bool(children(run)))
    began = time.time()
    for step, saved in ((6, 4), (10, 10)):
        trainer.reach(run, step)
        trainer.wait(run, (tmp_path / "a" / "checkpoints" / f"{saved:08d}").exists)
        kill(run)
        trainer.go(step)
    status, stderr = wait_for_exit(run)
    wall = (tmp_path / "a" / "timing.jsonl").stat().st_mtime - began
    assert status == 0, stderr
    assert stderr.count("killed by SIGKILL: restarting in 1 s") == 2
    assert [row["step"] for row in read_metrics(tmp_path / "a")] == list(range(1, 11))
    lines = read_timing(tmp_path / "a")
    assert [line["exit_status"] for line in lines if "exit_status" in line] == [-9, -9]
    assert [line["step"] for line in lines if "started" in line] == [0, 4, 10]
    spent = total_seconds(tmp_path / "a")
    assert sum(spent.values()) == pytest.approx(
        lines[-1]["clock"] - lines[0]["started"], rel=1e-4
    )
    assert sum(spent.values()) == pytest.approx(wall, rel=0.01, abs=0.2)
    assert spent["down"] > 1.9 and spent["lost"] > 0.0
    assert spent.keys() >= {"start", "restore", "compile", "step", "data", "save"}


def test_a_killed_worker_ends_the_others_and_all_restart(trainer, tmp_path):
    with socket.create_server(("", 0)) as door:
        port = door.getsockname()[1]
    words = ["Experiment.steps=12", "Mesh.fsdp=2", "--restarts", 3]
    seat = ["--processes", 2, "--coordinator", f"localhost:{port}"]
    both = [
        trainer.gated(*words, *seat, "--process", i, "--run", "a", at="6")
        for i in range(2)
    ]
    alone = trainer.start("Experiment.steps=12", "Mesh.data=1", "--run", "b")
    assert wait_for_exit(alone)[0] == 0
    trainer.reach(both[0], 6)
    kill(both[1])
    trainer.go(6)
    (first, stdout), (second, stderr) = map(wait_for_exit, both)
    assert (first, second) == (0, 0), (stdout, stderr)
    assert "process 1 (" in stdout and "the run exited with 75: restarting" in stdout
    assert "the run was killed by SIGKILL: restarting in 1 s" in stderr
    found, wanted = ([r["loss"] for r in read_metrics(tmp_path / run)] for run in "ab")
    assert found == pytest.approx(wanted, rel=1e-4) and len(found) == 12


def test_a_signal_to_the_supervisor_saves_and_ends_the_run(trainer, tmp_path):
    run = trainer.gated("--run", "a", "--restarts", 5, at="6")
    trainer.reach(run, 6)
    run.send_signal(signal.SIGTERM)
    trainer.go(6)
    status, stderr = wait_for_exit(run)
    assert status == 143 and "restarting" not in stderr
    assert "stopped by SIGTERM after step" in stderr


def test_a_run_whose_supervisor_is_killed_saves_and_ends(trainer, tmp_path):
    supervisor = trainer.gated("--run", "a", "--restarts", 5, at="6")
    trainer.reach(supervisor, 6)
    supervisor.kill()
    supervisor.wait()
    time.sleep(1.0)  # it looks every 0.5
    trainer.go(6)
    late = time.monotonic() + 60.0
    while (tmp_path / "a" / "lock").exists():
        assert time.monotonic() < late
        time.sleep(0.05)
    status, stderr = wait_for_exit(trainer.gated("--run", "a", at="6"))
    assert status == 0, stderr
    starts = [row["step"] for row in read_timing(tmp_path / "a") if "started" in row]
    assert starts == [0, 6]
