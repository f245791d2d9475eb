"""Data that a run skips, and thus which batch each of its steps reads."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lmx.core import distributed
from lmx.core.batch import Batch
from lmx.run.ledger import read_ledger
from lmx.train.program import RunContext

REWIND = "Rewind"  # its name in the ledger
SkippedRanges = Sequence[tuple[int, int]]  # sorted, disjoint [begin, end) of data steps


def load_skipped(path: Path) -> SkippedRanges:
    """The data that a run skips, by its ledger; equal in all processes."""

    def read() -> SkippedRanges:
        rows = [row for row in read_ledger(path) if row["hook"] == REWIND]
        return merge_ranges(row["data"] for row in rows)

    return distributed.broadcast_from_leader(read)


def merge_ranges(ranges: Iterable[Sequence[int]]) -> SkippedRanges:
    """The union of ranges, sorted and without neighbours that touch."""
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(map(tuple, ranges)):
        if merged and begin <= merged[-1][1]:
            begin, previous_end = merged.pop()
            end = max(end, previous_end)
        merged.append((begin, end))
    return merged


def to_data_step(skipped: SkippedRanges, step: int) -> int:
    """The data step that a training step reads."""
    for begin, end in skipped:
        if step >= begin:
            step += end - begin
    return step


def make_reader(run: RunContext, skipped: SkippedRanges) -> Callable[[int], Batch]:
    """A function that loads the batch of a training step."""
    return lambda step: run.load_batch(run.data, run.seed, to_data_step(skipped, step))
