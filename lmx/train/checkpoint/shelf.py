"""The folder that states lie in: which of them are there, and which have to go."""

import itertools
import os
import shutil
from collections.abc import Collection
from pathlib import Path

import orbax.checkpoint as ocp

from lmx.data.cache import discard

ASIDE = ".damaged"  # after the step, in the name of a state that is set aside


class Shelf:
    """One folder a step. Who is the first of many processes asks, and no other."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, step: int) -> Path:
        """The folder of that step."""
        return self.folder / f"{step:08d}"

    def steps(self) -> list[int]:
        """The steps whose commit is on disk now, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [p for p in self.folder.iterdir() if p.name.isdigit()]
        return sorted(
            int(p.name) for p in found if ocp.utils.is_checkpoint_finalized(p)
        )

    def damaged(self) -> list[Path]:
        """The states that were set aside."""
        return sorted(self.folder.glob(f"*{ASIDE}*"))

    def set_aside(self, step: int) -> None:
        """Gives a damaged state a name under which nobody looks for one."""
        names = (f"{step:08d}{ASIDE}{count or ''}" for count in itertools.count())
        free = (self.folder / name for name in names)
        self.path(step).rename(next(path for path in free if not path.exists()))

    def thin(self, keep: int, whole: Collection[int]) -> None:
        """Takes away all but the newest few, if one of those is known to be whole."""
        steps = self.steps()
        if not set(whole).isdisjoint(steps[-keep:]):
            for step in steps[:-keep]:
                discard(self.path(step))

    def clean(self) -> None:
        """Takes away what was left half written or half removed, as far as it can.

        Writes of a save that failed may still be under way: what they leave is taken
        after the next save, or when the run is started again.
        """
        for path in self.folder.glob("*"):
            if not path.name.isdigit() and ASIDE not in path.name:
                shutil.rmtree(path, ignore_errors=True)

    def trouble(self) -> str | None:
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
