"""The data that a run leaves out, and so which data each of its steps has."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lmx.core import distributed
from lmx.core.batch import Batch
from lmx.run.ledger import read_ledger
from lmx.train.program import RunContext

REWIND = "Rewind"  # what the ledger calls it
SkippedRanges = Sequence[
    tuple[int, int]
]  # in order and apart: [begin, end) of data steps


def load_skipped(path: Path) -> SkippedRanges:
    """What the run in a folder leaves out, by its ledger; the same in all processes."""

    def told() -> SkippedRanges:
        rows = [row for row in read_ledger(path) if row["hook"] == REWIND]
        return merge_ranges(row["data"] for row in rows)

    return distributed.broadcast_from_leader(told)


def merge_ranges(ranges: Iterable[Sequence[int]]) -> SkippedRanges:
    """The same data steps as ranges in order, no two of which meet."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(map(tuple, ranges)):
        if found and begin <= found[-1][1]:
            begin, before = found.pop()
            end = max(end, before)
        found.append((begin, end))
    return found


def to_data_step(skipped: SkippedRanges, step: int) -> int:
    """Which step's data that step has: those left out are as if they were not there."""
    for begin, end in skipped:
        if step >= begin:
            step += end - begin
    return step


def make_reader(run: RunContext, skipped: SkippedRanges) -> Callable[[int], Batch]:
    """Reads the batch of a step."""
    return lambda step: run.load_batch(run.data, run.seed, to_data_step(skipped, step))
