"""Processes that hang print their stacks and exit with 75."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train.test_processes import Group
from tests.xla_flags import FLAGS

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
TIMEOUT = 300.0  # seconds, on a busy machine
HANG = 12  # seconds without progress; compiling takes less


@pytest.fixture
def work(tmp_path):
    for file in (ROOT / "tests/train/tiny.gin", ROOT / "tests/faults/faulty.py"):
        shutil.copy(file, tmp_path)
    return tmp_path


def test_a_hanging_batch_ends_the_run_with_all_stacks(work):
    words = ["Experiment.data=@Faulty()", "Faulty.source=@RepeatTask()", "Mesh.data=1"]
    words += [
        "Faulty.hanging=(6,)",
        f"Experiment.hang_timeout={HANG}.0",
        "CheckpointPolicy.every=2",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "lmx.cli.main", "train", "tiny.gin", *words]
        + ["--import", "faulty", "--run", "run"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        | {"XLA_FLAGS": FLAGS},
        cwd=work,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 75, done.stderr
    stacks = (work / "run" / "hang-0.txt").read_text()
    for text in (stacks, done.stderr):
        assert f"no progress for {HANG} s (in phase 'data')" in text
        assert 'faulty.py", line' in text and "in batch_at" in text  # a worker
        assert 'loop.py", line' in text and "in train" in text  # the main thread


IMPATIENT = """
import pathlib, threading, time
from lmx.core import rendezvous

def wait():
    while not pathlib.Path("now").exists():
        time.sleep(0.1)
    rendezvous.HEARTBEAT_TIMEOUT = 6.0

threading.Thread(target=wait, daemon=True).start()
"""


@pytest.mark.parametrize("how", ["watchdog", "silence"])
def test_a_stopped_process_ends_its_peer_with_75(work, how):
    """By the watchdog of the step, or by missing heartbeats alone."""
    words = ["tiny.gin", "Experiment.steps=2000", "Mesh.data=2", "--run", "run"]
    words += ["--import", "impatient"]
    words += [f"Experiment.hang_timeout={HANG}.0"] if how == "watchdog" else []
    (work / "impatient.py").write_text(IMPATIENT)
    group = Group(work, words, 2)
    group.reach(work / "run", 10)
    group.members[1].send_signal(signal.SIGSTOP)
    if how == "silence":
        (work / "now").touch()
    start = time.monotonic()
    try:
        _, stderr = group.members[0].communicate(timeout=TIMEOUT)
        assert group.members[0].returncode == 75, stderr
        assert time.monotonic() - start < 60.0
        if how == "watchdog":
            assert f"no progress for {HANG} s (in phase '" in stderr
            assert "in train" in (work / "run" / "hang-0.txt").read_text()
        else:
            stopped = group.members[1].pid
            assert f"pid {stopped}) sent nothing for 6 s" in stderr
    finally:
        group.members[1].send_signal(signal.SIGCONT)
        _, stderr = group.members[1].communicate(timeout=TIMEOUT)
    # It finds the other gone, or jax does, whose service was in that.
    assert group.members[1].returncode in (75, -signal.SIGABRT), stderr
