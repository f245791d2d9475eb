"""Disks that are full, and folders that cannot be written, under real processes."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.reader import CheckpointReader
from tests.faults import trainer

pytestmark = pytest.mark.faults

STEPS = 12
WORDS = [f"Experiment.steps={STEPS}", "Mesh.data=1"]
ROOM = 48 << 10  # bytes that are left: less than a state has


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return trainer.place(tmp_path_factory.mktemp("disk"))


@pytest.fixture(scope="module")
def reference(work):
    """The folder of a run that nobody disturbed."""
    status, moaned = trainer.ended(
        trainer.start(
            work,
            "reference",
            *WORDS,
            "CheckpointPolicy.every=2",
            "CheckpointPolicy.keep=9",
        )
    )
    assert status == 0, moaned
    return work / "reference"


@pytest.fixture
def tight(work, reference, request):
    """A run at step 2, whose states are on a small disk of their own."""
    path = work / request.node.name
    shutil.copytree(reference, path)
    card = json.loads((path / "metadata.json").read_text())
    del card["final"]
    (path / "metadata.json").write_text(json.dumps(card))
    folder = path / "checkpoints"
    shutil.rmtree(folder)
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", f"{folder}"]
    subprocess.run(mount, check=True)
    shutil.copytree(reference / "checkpoints" / "00000002", folder / "00000002")
    yield path
    subprocess.run(["umount", "-l", f"{folder}"], check=True)


def fill(path: Path) -> Path:
    """Leaves little room on the disk of a run's states; the file that takes it."""
    folder = path / "checkpoints"
    ballast = folder / "00000000"  # a name that nobody takes for rubbish
    free = shutil.disk_usage(folder).free
    ballast.write_bytes(bytes(free - ROOM))
    return ballast


def test_a_full_disk_does_not_end_the_training_and_saves_are_tried_again(
    work, reference, tight
):
    ballast = fill(tight)
    process = trainer.start(
        work,
        tight.name,
        *WORDS,
        "CheckpointPolicy.every=1",
        "CheckpointPolicy.max_failures=9",
    )
    assert process.stderr
    for line in process.stderr:
        if "SAVE FAILED" in line:
            break
    ballast.unlink()
    status, moaned = trainer.ended(process)
    assert status == 0, moaned
    assert "No space left" in line
    checkpoints = CheckpointManager(tight / "checkpoints")
    assert checkpoints.list_steps() == [STEPS - 1, STEPS]
    found = checkpoints.read_metadata(STEPS)
    assert (
        found["root"]
        == CheckpointManager(reference / "checkpoints").read_metadata(STEPS)["root"]
    )


def test_a_disk_that_stays_full_ends_the_run_with_75_and_with_room_it_goes_on(
    work, tight
):
    ballast, words = fill(tight), (tight.name, *WORDS, "CheckpointPolicy.every=1")
    status, moaned = trainer.ended(trainer.start(work, *words))
    assert status == 75, moaned
    assert "SAVE FAILED, 3 of the 3" in moaned and "No space left" in moaned
    checkpoints = CheckpointManager(tight / "checkpoints")
    assert checkpoints.list_steps() == [2]
    assert not CheckpointReader(checkpoints.directory.step_path(2)).verify()
    ballast.unlink()
    status, moaned = trainer.ended(trainer.start(work, *words))
    assert status == 0, moaned
    left = {path.name for path in checkpoints.folder.iterdir()}
    assert left == {f"{STEPS - 1:08d}", f"{STEPS:08d}"}


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_compiled(
    work, tight
):
    folder = f"{tight / 'checkpoints'}"
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    status, moaned = trainer.ended(
        trainer.start(work, tight.name, *WORDS, "CheckpointPolicy.every=1")
    )
    assert status == 2, moaned
    assert f"no state can be saved in {folder}: [Errno 30] Read-only" in moaned
