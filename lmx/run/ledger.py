"""What was due at each step of a run beside the training, and what was done."""

from pathlib import Path
from typing import Any

from lmx.run.jsonl import read_jsonl
from lmx.run.run_dir import LEDGER, RunDir


class Ledger:
    """`ledger.jsonl` of a run: one thing, its step and what became of it, a line.

    A thing is `due`, then `done` or `consecutive_failures`; a save is `begun`, and whether it was
    finished stands in `checkpoints/`. Of many processes the first writes.
    """

    def __init__(self, run_dir: RunDir):
        self.run_dir = run_dir

    def record(self, step: int, hook: str, status: str, **facts: Any) -> None:
        """Adds a line at once."""
        line = {"step": step, "hook": hook, "status": status, **facts}
        self.run_dir.append(LEDGER, line)

    def list_done(self, step: int) -> list[str]:
        """What was due after that step and is done."""
        return [
            row["hook"]
            for row in read_ledger(self.run_dir.path)
            if row["step"] == step and row["status"] == "done"
        ]


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The lines of the ledger of a run, in the order in which they were written."""
    return read_jsonl(path / LEDGER)
