"""Non-finite losses, spikes, bad data and a flipped bit in real runs.

Each run is an `lmx train` of its own, with data or a hook of `faulty.py`.
"""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lmx.run.run_dir import read_ledger, read_metrics
from lmx.train.checkpoint.manager import CheckpointManager
from tests.xla_flags import FLAGS

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
CLOCKS = ("seconds", "tokens_per_second", "mfu")
TIMEOUT = 300.0  # seconds, on a busy machine
FAULTY = [
    "Experiment.data=@Faulty()",
    "Faulty.source=@RepeatTask()",
    "--import",
    "faulty",
]
REWIND = [
    *["Experiment.guard=@Rewind()", "Rewind.steps_back=5", "Rewind.skip_beyond=2"],
    *[
        "SpikeDetector.window=20",
        "SpikeDetector.sigma=4.0",
        "CheckpointPolicy.every=5",
        "Experiment.steps=45",
    ],
]
CASES = {
    "abort": ["Faulty.infinite=(5,)", "CheckpointPolicy.every=2"],
    "skip": ["Faulty.infinite=(4, 5)", "Experiment.guard=@SkipNonFinite()"],
    "never": [
        "Faulty.infinite=(4, 5, 6)",
        "Experiment.guard=@SkipNonFinite()",
        "SkipNonFinite.max_consecutive=2",
    ],
    "rewind": [*REWIND, "Faulty.hard=(32,)"],
    "shifted": [*REWIND, "Faulty.hard=(99,)", "Faulty.without=(25, 35)"],
    "again": [*REWIND, f"Faulty.hard={(32, *range(35, 60))}"],
    "missing": ["Faulty.missing=(5,)"],
    "flip": ["Experiment.hooks=[@Flip(), @ReplicaCheck()]", "Flip.at=5"]
    + ["ReplicaCheck.every=2", "CheckpointPolicy.every=2", "Mesh.data=4"],
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("guards")
    for file in (ROOT / "tests/train/tiny.gin", ROOT / "tests/faults/faulty.py"):
        shutil.copy(file, work)
    return work


def trained(work: Path, name: str) -> tuple[int, str]:
    """Exit status and stderr of the run of that name."""
    words = ["train", "tiny.gin", *FAULTY, *CASES[name], "--run", name]
    return lmx(work, *words, devices=4 if name == "flip" else 1)


def lmx(work: Path, *words: str, devices: int = 1) -> tuple[int, str]:
    """Exit status and stderr of a command."""
    flags = f"{FLAGS} --xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-m", "lmx.cli.main", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
        | {"JAX_PLATFORMS": "cpu"},
        cwd=work,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def runs(work):
    """Futures of all runs, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(trained, work, name) for name in CASES}


def saved(path: Path) -> list[int]:
    return CheckpointManager(path / "checkpoints", 2).list_steps()


def measured(path: Path) -> list[dict]:
    """All metrics except those of speed."""
    return [
        {name: v for name, v in row.items() if not name.startswith(CLOCKS)}
        for row in read_metrics(path)
    ]


def test_a_non_finite_loss_ends_the_run_before_its_state_is_saved(work, runs):
    status, stderr = runs["abort"].result()
    assert status == 1
    assert "error: step 6 has loss nan" in stderr and "Traceback" not in stderr
    assert "The first tensor that is not finite: loss." in stderr
    assert "Saved before it: the checkpoint of step 4" in stderr
    assert saved(work / "abort") == [2, 4]  # step 6 was due
    words = ["train", "tiny.gin", *FAULTY, *CASES["abort"], "--run", "abort"]
    words += ["Experiment.guard=@SkipNonFinite()", "--allow-change", "Experiment.guard"]
    status, stderr = lmx(work, *words)  # as it says
    assert status == 0 and "step 6 was skipped" in stderr, stderr


def test_a_skipped_step_is_counted_and_recorded(work, runs):
    status, stderr = runs["skip"].result()
    assert status == 0, stderr
    found = [row["skipped"] for row in read_metrics(work / "skip")]
    assert found == [0.0] * 4 + [1.0] * 2 + [0.0] * 4
    noted = [row["step"] for row in read_ledger(work / "skip") if row["hook"] == "Skip"]
    assert noted == [5, 6] and saved(work / "skip") == [8, 10]


def test_too_many_consecutive_skips_end_the_run(work, runs):
    status, stderr = runs["never"].result()
    assert status == 1 and "error: step 7 has loss nan" in stderr
    assert saved(work / "never") == [4]


def test_a_rewound_run_equals_one_without_the_skipped_data(work, runs):
    status, stderr = runs["rewind"].result()
    assert status == 0, stderr
    assert "step 33 is a spike: rewinding to step 25" in stderr
    (noted,) = [row for row in read_ledger(work / "rewind") if row["hook"] == "Rewind"]
    assert (noted["step"], noted["spike_step"], noted["data"]) == (25, 33, [25, 35])
    meta = CheckpointManager(work / "rewind" / "checkpoints").read_metadata(45)
    assert meta["extra"]["skipped_data"] == [[25, 35]]
    assert runs["shifted"].result()[0] == 0
    found = measured(work / "rewind")
    assert len(found) == 45 and found == measured(work / "shifted")
    words = ["replay", "rewind", "--step", "44", "--import", "faulty"]
    status, stderr = lmx(work, *words)  # on the data it saw, to the bit
    assert status == 0, stderr


def test_a_spike_with_other_data_too_ends_the_run(work, runs):
    status, stderr = runs["again"].result()
    assert status == 1 and "rewinding to step 25" in stderr
    assert "error: step 26 has a spike of its loss" in stderr


def test_unreadable_data_end_the_run_with_the_step(runs):
    status, stderr = runs["missing"].result()
    assert status == 1 and "no batch of step 5" in stderr


def test_a_flipped_bit_is_detected_before_it_is_saved(work, runs):
    status, stderr = runs["flip"].result()
    assert status == 75, stderr
    assert "error: step 6: replicas differ: params." in stderr
    assert "cpu:1" in stderr and "Traceback" not in stderr
    assert saved(work / "flip") == [2, 4]
    status, stderr = trained(work, "flip")
    assert status == 0, stderr
    assert saved(work / "flip") == [8, 10]
    assert json.loads((work / "flip" / "metadata.json").read_text())["final"]
