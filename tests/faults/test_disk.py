"""Full disks and read-only folders under real processes."""

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
ROOM = 48 << 10  # bytes that stay free: less than a state needs


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return trainer.copy_config(tmp_path_factory.mktemp("disk"))


@pytest.fixture(scope="module")
def reference(work):
    """The folder of an undisturbed run."""
    status, stderr = trainer.wait_for_exit(
        trainer.start(
            work,
            "reference",
            *WORDS,
            "CheckpointPolicy.every=2",
            "CheckpointPolicy.keep=9",
        )
    )
    assert status == 0, stderr
    return work / "reference"


@pytest.fixture
def tight(work, reference, request):
    """A run at step 2 with its states on a small disk."""
    path = work / request.node.name
    shutil.copytree(reference, path)
    metadata = json.loads((path / "metadata.json").read_text())
    del metadata["final"]
    (path / "metadata.json").write_text(json.dumps(metadata))
    folder = path / "checkpoints"
    shutil.rmtree(folder)
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", f"{folder}"]
    subprocess.run(mount, check=True)
    shutil.copytree(reference / "checkpoints" / "00000002", folder / "00000002")
    yield path
    subprocess.run(["umount", "-l", f"{folder}"], check=True)


def fill(path: Path) -> Path:
    """Fills the disk of a run's states; returns the file that takes the space."""
    folder = path / "checkpoints"
    ballast = folder / "00000000"  # not removed as an incomplete state
    free = shutil.disk_usage(folder).free
    ballast.write_bytes(bytes(free - ROOM))
    return ballast


def test_training_continues_on_a_full_disk_and_saves_are_retried(
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
    status, stderr = trainer.wait_for_exit(process)
    assert status == 0, stderr
    assert "No space left" in line
    checkpoints = CheckpointManager(tight / "checkpoints")
    assert checkpoints.list_steps() == [STEPS - 1, STEPS]
    found = checkpoints.read_metadata(STEPS)
    assert (
        found["root"]
        == CheckpointManager(reference / "checkpoints").read_metadata(STEPS)["root"]
    )


def test_a_disk_that_stays_full_ends_the_run_with_75(work, tight):
    ballast, words = fill(tight), (tight.name, *WORDS, "CheckpointPolicy.every=1")
    status, stderr = trainer.wait_for_exit(trainer.start(work, *words))
    assert status == 75, stderr
    assert "SAVE FAILED, 3 of the 3" in stderr and "No space left" in stderr
    checkpoints = CheckpointManager(tight / "checkpoints")
    assert checkpoints.list_steps() == [2]
    assert not CheckpointReader(checkpoints.directory.step_path(2)).verify()
    ballast.unlink()
    status, stderr = trainer.wait_for_exit(trainer.start(work, *words))
    assert status == 0, stderr
    left = {path.name for path in checkpoints.folder.iterdir()}
    assert left == {f"{STEPS - 1:08d}", f"{STEPS:08d}"}


def test_a_read_only_folder_is_refused_before_compilation(work, tight):
    folder = f"{tight / 'checkpoints'}"
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    status, stderr = trainer.wait_for_exit(
        trainer.start(work, tight.name, *WORDS, "CheckpointPolicy.every=1")
    )
    assert status == 2, stderr
    assert f"no checkpoint can be saved in {folder}: [Errno 30] Read-only" in stderr
