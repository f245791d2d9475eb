"""The folder with the checkpoints of a run: one folder a step."""

import itertools
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

import orbax.checkpoint as ocp

from lmx.core.files import remove_dir

QUARANTINED = ".damaged"  # ends the name of a checkpoint that is not used any more


class CheckpointDir:
    """The checkpoints of a run by step. Only the leader changes them."""

    def __init__(self, folder: Path):
        self.folder = folder

    def step_path(self, step: int) -> Path:
        """The folder of that step."""
        return self.folder / f"{step:08d}"

    def list_steps(self) -> list[int]:
        """The steps that are committed, oldest first."""
        folders = [path for path in self.folder.glob("*") if path.name.isdigit()]
        committed = filter(ocp.utils.is_checkpoint_finalized, folders)
        return sorted(int(path.name) for path in committed)

    def list_quarantined(self) -> list[Path]:
        """The damaged checkpoints."""
        return sorted(self.folder.glob(f"*{QUARANTINED}*"))

    def quarantine(self, step: int) -> None:
        """Renames a damaged checkpoint, so that it is not found any more."""
        names = (f"{step:08d}{QUARANTINED}{n or ''}" for n in itertools.count())
        paths = (self.folder / name for name in names)
        self.step_path(step).rename(next(path for path in paths if not path.exists()))

    def prune(self, keep: int, verified: Collection[int]) -> None:
        """Removes all but the newest checkpoints, if one of those is verified."""
        steps = self.list_steps()
        if not set(verified).isdisjoint(steps[-keep:]):
            for step in steps[:-keep]:
                remove_dir(self.step_path(step))

    def clean(self) -> None:
        """Removes what a save or a removal left unfinished, as far as possible.

        A failed save may still be writing: the rest is removed after the next save, or
        when the run starts again.
        """
        for path in self.folder.glob("*"):
            if not path.name.isdigit() and QUARANTINED not in path.name:
                shutil.rmtree(path, ignore_errors=True)

    def check_writable(self) -> str | None:
        """Creates the folder and writes to it; the reason if that fails."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.clean()
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(b"0")
        except OSError as error:
            return f"{error}"
        return None
