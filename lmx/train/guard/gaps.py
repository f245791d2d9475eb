"""The data that a run leaves out, and so which data each of its steps has."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lmx.core import process
from lmx.core.batch import Batch
from lmx.train.record.ledger import entries
from lmx.train.run import Run

REWIND = "Rewind"  # what the ledger calls it
Gaps = Sequence[tuple[int, int]]  # in order and apart: [begin, end) of data steps


def gaps_of(path: Path) -> Gaps:
    """What the run in a folder leaves out, by its ledger; the same in all processes."""

    def told() -> Gaps:
        rows = [row for row in entries(path) if row["what"] == REWIND]
        return merged(row["data"] for row in rows)

    return process.from_first(told)


def merged(ranges: Iterable[Sequence[int]]) -> Gaps:
    """The same data steps as ranges in order, no two of which meet."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(map(tuple, ranges)):
        if found and begin <= found[-1][1]:
            begin, before = found.pop()
            end = max(end, before)
        found.append((begin, end))
    return found


def data_step(gaps: Gaps, step: int) -> int:
    """Which step's data that step has: those left out are as if they were not there."""
    for begin, end in gaps:
        if step >= begin:
            step += end - begin
    return step


def reader(run: Run, path: Path) -> Callable[[int], Batch]:
    """Reads the batch of a step of the run in that folder."""
    gaps = gaps_of(path)
    return lambda step: run.read(run.data, run.seed, data_step(gaps, step))
