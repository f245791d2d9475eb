"""The folder that states lie in: which of them are there, and which have to go."""

import itertools
import os
import shutil
from collections.abc import Collection
from pathlib import Path

import orbax.checkpoint as ocp

from lmx.core.files import remove_dir

QUARANTINED = ".damaged"  # after the step, in the name of a state that is set aside


class CheckpointDir:
    """One folder a step. Who is the first of many processes asks, and no other."""

    def __init__(self, folder: Path):
        self.folder = folder

    def step_path(self, step: int) -> Path:
        """The folder of that step."""
        return self.folder / f"{step:08d}"

    def list_steps(self) -> list[int]:
        """The steps whose commit is on disk now, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [p for p in self.folder.iterdir() if p.name.isdigit()]
        return sorted(
            int(p.name) for p in found if ocp.utils.is_checkpoint_finalized(p)
        )

    def list_quarantined(self) -> list[Path]:
        """The states that were set aside."""
        return sorted(self.folder.glob(f"*{QUARANTINED}*"))

    def quarantine(self, step: int) -> None:
        """Gives a damaged state a name under which nobody looks for one."""
        names = (f"{step:08d}{QUARANTINED}{count or ''}" for count in itertools.count())
        free = (self.folder / name for name in names)
        self.step_path(step).rename(next(path for path in free if not path.exists()))

    def prune(self, keep: int, verified: Collection[int]) -> None:
        """Takes away all but the newest few, if one of those is known to be whole."""
        steps = self.list_steps()
        if not set(verified).isdisjoint(steps[-keep:]):
            for step in steps[:-keep]:
                remove_dir(self.step_path(step))

    def clean(self) -> None:
        """Takes away what was left half written or half removed, as far as it can.

        Writes of a save that failed may still be under way: what they leave is taken
        after the next save, or when the run is started again.
        """
        for path in self.folder.glob("*"):
            if not path.name.isdigit() and QUARANTINED not in path.name:
                shutil.rmtree(path, ignore_errors=True)

    def check_writable(self) -> str | None:
        """Makes the folder and a file in it; why that fails, or None if it does not."""
        probe = self.folder / ".probe"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.clean()
            probe.mkdir()
            (probe / "file").write_bytes(os.urandom(1))
            shutil.rmtree(probe)
        except OSError as error:
            return f"{error}"
        return None
