"""Several processes on one machine train, stop and exit like one.

Each is an `lmx train` of its own; gloo carries what their devices tell one another.
Every mesh axis crosses processes: `data`, `fsdp` and `tensor` in the tests of resuming
here and in `test_elastic.py`, `expert` and `context` in `CASES`, where two of their
devices can also be in one process. `make nightly` has more combinations.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import lmx
from lmx.core.rendezvous import EXIT_RESTART
from lmx.run.run_dir import read_last_metrics, read_metrics
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.reader import CheckpointReader
from lmx.train.trainer import train_run
from tests.train.conftest import FLOAT64, PAGE, VARIANTS
from tests.xla_flags import FLAGS

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0  # seconds, on a machine that has much else to do
LONG = ["Experiment.steps=100"]
EVALUATE = [
    "Experiment.hooks=[@Evaluate()]",
    "Evaluate.data=@RepeatTask()",
    "Evaluate.batches=1",
]
PRINTED = (PAGE.stem, "error:", "Traceback", "Warning")  # C++ writes lines of its own
CLOSE = {"float64": 1e-9, "float32": 1e-4}  # relative
# Processes, devices of each, mesh, kind, dtype.
CASES = [
    (2, 2, "expert=4", "moe", "float64"),
    (2, 2, "context=4", "dense", "float64"),
    (4, 1, "expert=2 x context=2", "moe", "float64"),
    (4, 2, "data=2 x fsdp=2 x tensor=2", "dense", "float32"),
]
NIGHTLY = [
    (4, 2, "data=2 x fsdp=2 x tensor=2", "moe", "float32"),
    (2, 2, "fsdp=2 x tensor=2", "dense", "float32"),
    (2, 2, "expert=4", "moe", "float32"),
    (2, 2, "context=4", "dense", "float32"),
    (2, 2, "data=4", "dense", "float64"),
    (4, 1, "data=4", "dense", "float64"),
    (4, 1, "fsdp=2 x tensor=2", "dense", "float64"),
    (4, 1, "expert=4", "moe", "float64"),
    (4, 1, "context=4", "dense", "float64"),
    (4, 2, "fsdp=2 x context=2 x tensor=2", "dense", "float32"),
]


def mesh_words(mesh: str) -> list[str]:
    return [f"Mesh.{axis}" for axis in mesh.split(" x ")]


def port() -> int:
    """A free port."""
    with socket.create_server(("", 0)) as door:
        return door.getsockname()[1]


class Group:
    """The processes of one run, `devices` each."""

    def __init__(self, work: Path, words: list[str], processes: int, devices: int = 1):
        self.work = work
        common = [*words, "--processes", processes, "--coordinator"]
        common.append(f"localhost:{port()}")
        self.members = [
            self._start([*common, "--process", process], devices)
            for process in range(processes)
        ]

    def _start(self, words: list, devices: int) -> subprocess.Popen:
        flags = f"{FLAGS} --xla_force_host_platform_device_count={devices}"
        return subprocess.Popen(
            [sys.executable, "-m", "lmx.cli.main", "train", *map(str, words)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
            | {"JAX_PLATFORMS": "cpu"},
            cwd=self.work,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> list[tuple[int, str, str]]:
        """Exit status, stdout and stderr of each process."""
        found = []
        try:
            for member in self.members:
                stdout, stderr = member.communicate(timeout=PATIENCE)
                found.append((member.returncode, stdout, stderr))
        finally:
            for member in self.members:
                member.kill()
        return found

    def done(self) -> None:
        """All exited with 0, and only the first printed."""
        found = self.end()
        assert [status for status, *_ in found] == [0] * len(found), found
        for _, stdout, stderr in found[1:]:
            assert not [word for word in PRINTED if word in stdout + stderr], found

    def reach(self, path: Path, step: int) -> None:
        """Waits until metrics of that step are on disk."""
        late = time.monotonic() + PATIENCE
        while max((row["step"] for row in read_metrics(path)), default=0) < step:
            alive = all(member.poll() is None for member in self.members)
            assert alive and time.monotonic() < late, self.end()
            time.sleep(0.01)


@pytest.fixture
def work(tmp_path):
    """A working folder with `tiny.gin` only."""
    shutil.copy(PAGE, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of the same run in one process on one device, cached."""
    made: dict[tuple[str, ...], Path] = {}

    def alone(*words: str) -> Path:
        if words not in made:
            path = tmp_path_factory.mktemp("alone") / "run"
            config = lmx.load_experiment(PAGE, [*words, "Mesh.data=1"])
            with jax.enable_x64("Precision.params=float64" in words):
                train_run("alone", config, path)
            made[words] = path
        return made[words]

    return alone


def check_same(path: Path, other: Path, rtol: float) -> None:
    """The same losses, gradients and evaluations at the same steps."""
    found, wanted = [list(read_metrics(folder)) for folder in (path, other)]
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for here, there in zip(found, wanted, strict=True):
        for name in there.keys() & {"loss", "grad_norm", "validation/nats"}:
            np.testing.assert_allclose(here[name], there[name], rtol=rtol)


def check_trained(work, alone, processes, devices, mesh, kind, dtype, *words):
    overrides = [*(FLOAT64 if dtype == "float64" else []), *VARIANTS[kind], *words]
    run = ["tiny.gin", *overrides, *mesh_words(mesh), "--run", "run"]
    Group(work, run, processes, devices).done()
    check_same(work / "run", alone(*overrides), CLOSE[dtype])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A folder where two processes trained and recorded which rows they requested."""
    work = tmp_path_factory.mktemp("pair")
    for file in (PAGE, PAGE.with_name("recording_dataset.py")):
        shutil.copy(file, work)
    words = ["Experiment.data=@RecordingConfig()", "RecordingConfig.folder=."]
    words += ["RecordingConfig.source=@RepeatTask()"]
    run = ["tiny.gin", *words, *FLOAT64, *EVALUATE, "Mesh.fsdp=2", "Mesh.tensor=2"]
    Group(
        work, [*run, "--import", "recording_dataset", "--run", "run"], 2, devices=2
    ).done()
    return work


def test_two_processes_train_and_evaluate_like_one(pair, alone):
    run = pair / "run"
    check_same(run, alone(*FLOAT64, *EVALUATE), CLOSE["float64"])
    assert [row["step"] for row in read_metrics(run) if "validation/nats" in row] == [
        10
    ]
    assert json.loads((run / "metadata.json").read_text())["final"]
    checkpoints = CheckpointManager(run / "checkpoints", 2)
    assert checkpoints.list_steps() == [8, 10]
    assert checkpoints.read_metadata(10)["lineage"][0]["processes"] == 2
    assert not CheckpointReader(checkpoints.directory.step_path(10)).verify()


def test_a_process_reads_only_the_rows_of_its_devices(pair):
    for process, own in enumerate(["0 4", "4 8"]):
        asked = (pair / str(process)).read_text().splitlines()
        assert asked[0] == "0 0 1"  # one row, to know the shapes
        assert sorted(asked[1:], key=lambda line: int(line.split()[0])) == [
            f"{step} {own}" for step in range(10)
        ]


@pytest.mark.parametrize(
    "case",
    [*CASES, *(pytest.param(case, marks=pytest.mark.nightly) for case in NIGHTLY)],
    ids=lambda case: f"{case[0]} of {case[1]}, {' '.join(case[2:])}",
)
def test_several_processes_train_like_one(work, alone, case):
    check_trained(work, alone, *case)


def test_a_signal_to_one_of_four_stops_all_and_two_or_one_resume(work, alone):
    words = ["tiny.gin", *LONG, "CheckpointPolicy.every=90", *FLOAT64, "--run", "run"]
    group = Group(work, [*words, "Mesh.fsdp=2", "Mesh.tensor=2"], 4)
    group.reach(work / "run", 5)
    group.members[2].send_signal(signal.SIGTERM)
    found = group.end()
    assert [status for status, *_ in found] == [143] * 4, found
    (step,) = CheckpointManager(work / "run" / "checkpoints", 2).list_steps()
    assert read_last_metrics(work / "run")["step"] == step
    assert f"stopped by SIGTERM after step {step}; the same" in found[0][2]
    shutil.copytree(work / "run", work / "other")
    Group(work, [*words, "Mesh.tensor=2"], 2, 2).done()
    check_same(work / "run", alone(*LONG, *FLOAT64), 1e-9)
    config = lmx.load_experiment(PAGE, [*LONG, *FLOAT64, "Mesh.data=1"])
    with jax.enable_x64(True):
        train_run("other", config, work / "other")
    check_same(work / "other", alone(*LONG, *FLOAT64), 1e-9)


def test_if_one_is_killed_the_other_exits_with_75_and_a_restart_resumes(work, alone):
    """First a follower is killed, then the leader of the resumed run."""
    words = [
        "tiny.gin",
        *LONG,
        "CheckpointPolicy.every=5",
        *FLOAT64,
        "Mesh.fsdp=2",
        "--run",
        "run",
    ]
    for victim, step in ((1, 12), (0, 32)):
        group = Group(work, words, 2)
        group.reach(work / "run", step)
        group.members[victim].kill()
        start = time.monotonic()
        _, _, stderr = group.end()[1 - victim]
        assert time.monotonic() - start < 30.0
        assert group.members[1 - victim].returncode == EXIT_RESTART, stderr
        killed = group.members[victim].pid
        assert f"error: process {victim} (" in stderr
        assert f"pid {killed}) died" in stderr
    Group(work, words, 2).done()
    check_same(work / "run", alone(*LONG, *FLOAT64), 1e-9)


def test_an_error_in_one_process_exits_all_with_its_message_and_status(work):
    words = ["tiny.gin", "Mesh.data=1", "--run", "run"]
    for status, _, stderr in Group(work, words, 2).end():
        assert status == 2
        assert "takes 1 of 2 devices, and none of process 1: make it larger" in stderr
    assert not (work / "run").exists()


def test_missing_processes_are_named_and_nothing_is_written(work):
    words = ["tiny.gin", "--run", "run", "--processes", "3", "--process", "0"]
    words += ["--coordinator", f"localhost:{port()}", "--wait", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "lmx.cli.main", "train", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        cwd=work,
        capture_output=True,
        text=True,
    )
    assert done.returncode == EXIT_RESTART
    assert "2 of 3 processes did not join within 2 s: 1, 2. Joined:" in done.stderr
    assert not (work / "run").exists()
