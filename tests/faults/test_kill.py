"""A signal saves a run, and its result equals that of an undisturbed one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import chex
import jax
import pytest

import lmx
from lmx.run.run_dir import read_metrics
from lmx.train.checkpoint.manager import CheckpointManager
from tests.xla_flags import FLAGS

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 100, 4
WORDS = [
    f"Experiment.steps={STEPS}",
    f"CheckpointPolicy.every={EVERY}",
    "Experiment.hooks=[@Evaluate()]",
    "Evaluate.data=@RepeatTask()",
    "Evaluate.batches=1",
    "Evaluate.every=6",
    "Decoder.dropout=0.1",
    "Mesh.data=1",
]
CLOCKS = ("seconds", "tokens_per_second", "mfu")
TIMEOUT = 300.0  # seconds, on a busy machine


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("faults")
    shutil.copy(ROOT / "tests" / "train" / "tiny.gin", work)
    return work


def start(work: Path, name: str) -> subprocess.Popen:
    """`lmx train` of the run of that name, on one device."""
    command = ["train", "tiny.gin", *WORDS, "--run", name]
    return subprocess.Popen(
        [sys.executable, "-m", "lmx.cli.main", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": FLAGS}
        | {"JAX_PLATFORMS": "cpu"},
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stopped(
    work: Path, name: str, signum: signal.Signals, when: Callable[[Path], bool]
) -> tuple[int, str]:
    """Starts the run and sends a signal once `when` is true; exit status and stderr."""
    process = start(work, name)
    patience = time.monotonic() + TIMEOUT
    while process.poll() is None and not when(work / name):
        assert time.monotonic() < patience
        time.sleep(0.001)
    assert process.poll() is None, process.communicate()
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=TIMEOUT)
    return process.returncode, stderr


def wait_for_exit(process: subprocess.Popen) -> str:
    """The stdout of a run that succeeds."""
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, stderr
    return stdout


def reached(step: int) -> Callable[[Path], bool]:
    """Whether metrics of that step are on disk."""
    return lambda path: (
        max((row["step"] for row in read_metrics(path)), default=0) >= step
    )


def undisturbed(work: Path) -> Path:
    """The folder of a run from its first step to its last."""
    wait_for_exit(start(work, "reference"))
    return work / "reference"


def asked(work: Path) -> list[tuple[int, str, int, int]]:
    """Ctrl-C, SIGTERM, the rest; each status, last line, newest state and metrics."""
    found = []
    for signum, moment in [(signal.SIGINT, 10), (signal.SIGTERM, 50)]:
        status, stderr = stopped(work, "asked", signum, reached(moment))
        state = CheckpointManager(work / "asked" / "checkpoints", 2).list_steps()[-1]
        row = measured(work / "asked")[-1]["step"]
        found.append((status, stderr.strip().splitlines()[-1], state, row))
    wait_for_exit(start(work, "asked"))
    return found


@pytest.fixture(scope="module")
def runs(work):
    """Futures of these runs, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield {f.__name__: pool.submit(f, work) for f in (asked, undisturbed)}


@pytest.fixture
def reference(runs):
    """The folder of the undisturbed run."""
    return runs["undisturbed"].result()


def measured(path: Path) -> list[dict]:
    """All metrics except those of speed."""
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [
        {name: v for name, v in json.loads(line).items() if not name.startswith(CLOCKS)}
        for line in lines
    ]


def check_same(work: Path, path: Path, other: Path) -> None:
    """The same metrics and the same last state, to the bit."""
    assert measured(path) == measured(other)
    run = lmx.load_experiment(work / "tiny.gin", WORDS).build().open()
    states = [
        CheckpointManager(folder / "checkpoints", 2).restore(
            STEPS, run.abstract_state()
        )
        for folder in (path, other)
    ]
    chex.assert_trees_all_equal(*map(jax.device_get, states))


def test_a_signal_saves_the_step_and_says_how_to_resume(work, runs, reference):
    how = "the same command resumes: asked"
    for found, status, name in zip(
        runs["asked"].result(), (130, 143), ("SIGINT", "SIGTERM"), strict=True
    ):
        *printed, state, row = found
        assert printed == [status, f"stopped by {name} after step {state}; {how}"]
        assert state == row  # no state without its metrics
    check_same(work, work / "asked", reference)


def test_a_finished_run_started_again_changes_nothing(work, reference):
    path = reference
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert f"{STEPS} steps" in wait_for_exit(start(work, "reference"))
    after = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert before == after
