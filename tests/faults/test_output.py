"""Output that cannot be written, and terminals that close."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from lmx.run.run_dir import read_metadata, read_metrics
from lmx.train.checkpoint.manager import CheckpointManager
from tests.faults.trainer import ROOT, TIMEOUT, wait_for_exit

pytestmark = pytest.mark.faults


def train_in_shell(trainer, redirections: str) -> subprocess.Popen:
    """Trains `tiny.gin` with its descriptors as a shell sets them."""
    words = "-m lmx.cli.main train tiny.gin Mesh.data=1 --run a"
    trainer.started.append(
        subprocess.Popen(
            ["bash", "-c", f"set -o pipefail; {sys.executable} {words} {redirections}"],
            env={**os.environ, "PYTHONPATH": f"{ROOT}", "JAX_PLATFORMS": "cpu"},
            cwd=trainer.work,
            stderr=subprocess.PIPE,
            text=True,
        )
    )
    return trainer.started[-1]


@pytest.mark.parametrize("redirections", ["2>/dev/full | true", ">&- 2>&- <&-"])
def test_a_run_whose_output_cannot_be_written_ends_as_any_other(
    trainer, tmp_path, redirections
):
    """A full disk under the log and a reader that went away; closed descriptors."""
    process = train_in_shell(trainer, redirections)
    status, stderr = wait_for_exit(process)
    assert status == 0, stderr
    run = tmp_path / "a"
    assert [row["step"] for row in read_metrics(run)] == list(range(1, 11))
    for name in ("timing", "ledger"):
        lines = (run / f"{name}.jsonl").read_text().splitlines()
        assert all(isinstance(json.loads(line), dict) for line in lines)
    assert "final" in read_metadata(run)
    assert CheckpointManager(run / "checkpoints").list_steps()[-1] == 10


def test_a_terminal_that_closes_saves_the_run(trainer, tmp_path):
    """SIGHUP is as SIGTERM; nothing can be written to the terminal any more."""
    main, terminal = os.openpty()
    words = [sys.executable, "-m", "lmx.cli.main", "train", "tiny.gin", "--run", "a"]
    gate = ["--import", "gates", "Experiment.hooks=[@Gate()]", "Gate.folder=."]
    process = subprocess.Popen(
        [*words, *gate, "Gate.at=(6,)", "Mesh.data=1"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}", "JAX_PLATFORMS": "cpu"},
        cwd=tmp_path,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    trainer.started.append(process)
    os.close(terminal)
    threading.Thread(target=drain, args=(main,), daemon=True).start()
    trainer.reach(process, 6)
    process.send_signal(signal.SIGHUP)
    os.close(main)
    trainer.go(6)
    assert process.wait(TIMEOUT) == 143
    assert CheckpointManager(tmp_path / "a" / "checkpoints").list_steps()[-1] == 6


def drain(terminal: int) -> None:
    """Reads what is written to a terminal, until it is closed."""
    with contextlib.suppress(OSError):
        while os.read(terminal, 4096):
            pass


@pytest.mark.parametrize("removed", ["lock", "."])
def test_a_run_whose_folder_or_lock_is_removed_stops(trainer, tmp_path, removed):
    """Two processes would write there, or what is saved could not be resumed."""
    run = trainer.gated("Mesh.data=1", "--run", "a", at="6")
    trainer.reach(run, 6)
    path = tmp_path / "a" / removed
    path.unlink() if path.is_file() else shutil.rmtree(path)
    trainer.go(6)
    status, stderr = wait_for_exit(run)
    assert status == 1, stderr
    # TensorStore may have printed before that nobody waits for a write that failed.
    last = stderr.splitlines()[-1]
    assert last.startswith("error: a/lock was removed while this process was writing")
