"""The ledger: which hooks were due at each step of a run, and which have run."""

from pathlib import Path
from typing import Any

from lmx.run.jsonl import read_jsonl
from lmx.run.run_dir import LEDGER, RunDir


class Ledger:
    """`ledger.jsonl` of a run: one line for each change of a hook's status at a step.

    A hook is `due`, then `done` or `failed`; a save is `started`, and is finished if
    its checkpoint exists. Only the leader writes.
    """

    def __init__(self, run_dir: RunDir):
        self.run_dir = run_dir

    def record(self, step: int, hook: str, status: str, **facts: Any) -> None:
        """Appends a line."""
        line = {"step": step, "hook": hook, "status": status, **facts}
        self.run_dir.append(LEDGER, line)

    def list_done(self, step: int) -> list[str]:
        """The hooks that were due after that step and have run."""
        return [
            row["hook"]
            for row in read_ledger(self.run_dir.path)
            if row["step"] == step and row["status"] == "done"
        ]


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The lines of the ledger of a run, in the order in which they were written."""
    return read_jsonl(path / LEDGER)
