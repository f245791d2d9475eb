"""Kills during a save, and damaged states, in real processes."""

import json
import shutil
import signal
import socket
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from lmx.faulttest.kill_point import (
    AFTER_COMMIT,
    BEFORE_COMMIT,
    BEFORE_PRUNE,
    FIRST_ARRAY,
    KillPoint,
)
from lmx.faulttest.process_group import INJECTOR
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.reader import CheckpointReader
from tests.faults import trainer
from tests.train.checkpoint.damage import flip, truncate

pytestmark = pytest.mark.faults

STEPS = 20
WORDS = [f"Experiment.steps={STEPS}", "Mesh.data=1", "CheckpointPolicy.every=4"]
NAME = "params.stack.cycles.0.blocks.0.mlp.up.w.value"


def states(path: Path) -> CheckpointManager:
    return CheckpointManager(path / "checkpoints")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return trainer.copy_config(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def reference(work):
    """The folder of an undisturbed run with all its states."""
    status, stderr = trainer.wait_for_exit(
        trainer.start(work, "reference", *WORDS, "CheckpointPolicy.keep=9")
    )
    assert status == 0, stderr
    return work / "reference"


@pytest.fixture
def again(work, reference, request):
    """A copy of it without the record that it is finished."""
    path = work / request.node.name
    shutil.copytree(reference, path)
    metadata = json.loads((path / "metadata.json").read_text())
    del metadata["final"]
    (path / "metadata.json").write_text(json.dumps(metadata))
    return path


def test_a_kill_at_any_point_of_a_save_loses_at_most_that_save(work, reference):
    path = work / "killed"
    points = {
        KillPoint(FIRST_ARRAY, 8): [4],
        KillPoint(BEFORE_COMMIT, 8): [4],
        KillPoint(AFTER_COMMIT, 8): [4, 8],
        KillPoint(BEFORE_PRUNE, 16): [8, 12, 16],
    }
    for point, steps in points.items():
        program = ("-m", INJECTOR, f"{work / 'trace'}", json.dumps(asdict(point)))
        words = [*WORDS, "CheckpointPolicy.keep=2"]
        status, stderr = trainer.wait_for_exit(
            trainer.start(work, "killed", *words, program=program)
        )
        assert status == -signal.SIGKILL, (point, stderr)
        assert states(path).list_steps() == steps, point
        for step in steps:
            reader = CheckpointReader(states(path).directory.step_path(step))
            assert not reader.verify(), point
        uncommitted = [*(path / "checkpoints").glob("*tmp*")]
        assert bool(uncommitted) == (point.kind in (FIRST_ARRAY, BEFORE_COMMIT))
    status, stderr = trainer.wait_for_exit(trainer.start(work, "killed", *WORDS))
    assert status == 0, stderr
    assert {p.name for p in (path / "checkpoints").iterdir()} == {
        "00000016",
        "00000020",
    }
    found = states(path).read_metadata(STEPS)
    assert found["root"] == states(reference).read_metadata(STEPS)["root"]
    parents = [a["parent"] and a["parent"]["step"] for a in found["lineage"]]
    assert parents == [None, 4, 8, 16]  # of the attempts that saved a state


@pytest.mark.parametrize("keep", [1, STEPS])
def test_slow_saves_run_one_at_a_time_and_are_correct(work, reference, keep):
    """Each step donates the buffers that the save of the step before it writes."""
    words = [*WORDS[:2], "CheckpointPolicy.every=1", f"CheckpointPolicy.keep={keep}"]
    process = trainer.start(work, f"each-{keep}", *words)
    found, most, seen = states(work / f"each-{keep}"), 0, []
    while process.poll() is None and not found.folder.exists():
        time.sleep(0.05)
    while process.poll() is None:
        under_way = {path.name for path in found.folder.glob("*.orbax-checkpoint-tmp")}
        most = max(most, len(under_way))
        seen.append(any(found.folder.glob("[0-9]" * 8)))
        time.sleep(0.002)
    assert trainer.wait_for_exit(process)[0] == 0
    assert most == 1 and all(
        seen[seen.index(True) :]
    )  # one at a time, and always a complete one
    assert found.list_steps() == [*range(STEPS - keep + 1, STEPS + 1)]
    for step in states(reference).list_steps()[-keep:]:
        assert (
            found.read_metadata(step)["root"]
            == states(reference).read_metadata(step)["root"]
        )
        assert not CheckpointReader(found.directory.step_path(step)).verify()


def test_damaged_states_are_named_and_the_newest_intact_one_is_used(
    work, reference, again
):
    shelf = states(again).directory
    flip(shelf.step_path(20), NAME)
    truncate(shelf.step_path(16), NAME)
    (shelf.step_path(12) / "metadata" / "metadata.json").unlink()
    status, stderr = trainer.wait_for_exit(
        trainer.start(work, again.name, *WORDS, "CheckpointPolicy.damaged=refuse")
    )
    assert status == 2 and "00000020/state/" in stderr, stderr
    assert f"{NAME} is not what was saved" in stderr
    assert states(again).list_steps() == [4, 8, 12, 16, 20]
    status, stderr = trainer.wait_for_exit(
        trainer.start(work, again.name, *WORDS, "CheckpointPolicy.keep=9")
    )
    assert status == 0, stderr
    assert stderr.count("DAMAGED, quarantined") == 3
    assert "00000016/state/" in stderr and "cannot be read" in stderr
    assert "00000012/metadata/metadata.json: is missing" in stderr
    assert [p.name for p in shelf.list_quarantined()] == [
        f"{step:08d}.damaged" for step in (12, 16, 20)
    ]
    assert states(again).list_steps() == [4, 8, 12, 16, 20]
    found = states(again).read_metadata(STEPS)
    assert found["root"] == states(reference).read_metadata(STEPS)["root"]
    assert found["parent"] == {
        "step": 8,
        "root": states(again).read_metadata(8)["root"],
    }


def test_a_run_with_damaged_states_only_does_not_restart_from_step_0(work, again):
    for step in states(again).list_steps():
        truncate(states(again).directory.step_path(step), NAME)
    status, stderr = trainer.wait_for_exit(trainer.start(work, again.name, *WORDS))
    assert status == 2 and "no intact checkpoint to resume from" in stderr, stderr
    assert states(again).list_steps() == [4, 8, 12, 16, 20]


def test_two_processes_restore_the_same_state_if_one_detects_damage(work, again):
    flip(
        states(again).directory.step_path(20), NAME
    )  # in the half that the second one reads
    with socket.create_server(("", 0)) as door:
        meeting = f"localhost:{door.getsockname()[1]}"
    words = [*WORDS[:1], "Mesh.fsdp=2", "CheckpointPolicy.keep=9", "--processes", "2"]
    words += ["--coordinator", meeting]
    found = [
        trainer.wait_for_exit(process)
        for process in [
            trainer.start(work, again.name, *words, "--process", each) for each in "01"
        ]
    ]
    assert [status for status, _ in found] == [0, 0], found
    assert "DAMAGED, quarantined" in found[0][1] and "DAMAGED" not in found[1][1]
    attempt = states(again).read_metadata(STEPS)["lineage"][-1]
    assert attempt["parent"]["step"] == 16 and attempt["processes"] == 2
    assert not CheckpointReader(states(again).directory.step_path(STEPS)).verify()
