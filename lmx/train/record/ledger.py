"""What was due at each step of a run beside the training, and what was done."""

from pathlib import Path
from typing import Any

from lmx.train.record.directory import LEDGER, Directory
from lmx.train.record.journal import read


class Ledger:
    """`ledger.jsonl` of a run: one thing, its step and what became of it, a line.

    A thing is `due`, then `done` or `failed`; a save is `begun`, and whether it was
    finished stands in `checkpoints/`. Of many processes the first writes.
    """

    def __init__(self, directory: Directory):
        self.directory = directory

    def note(self, step: int, what: str, state: str, **facts: Any) -> None:
        """Adds a line at once."""
        line = {"step": step, "what": what, "state": state, **facts}
        self.directory.append(LEDGER, line)

    def done(self, step: int) -> list[str]:
        """What was due after that step and is done."""
        return [
            row["what"]
            for row in entries(self.directory.path)
            if row["step"] == step and row["state"] == "done"
        ]


def entries(path: Path) -> list[dict[str, Any]]:
    """The lines of the ledger of a run, in the order in which they were written."""
    return read(path / LEDGER)
