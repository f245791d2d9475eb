"""The data that each step reads, and the checkpoint that a rewind chooses."""

import itertools

import numpy as np
import pytest

from lmx.train.guard.nonfinite import merge_ranges, to_data_step
from lmx.train.guard.spikes import Rewind


def test_steps_read_the_data_that_are_not_skipped_in_order():
    """Against a list of all data steps without the skipped ones."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        ranges = [sorted(rng.integers(0, 60, 2).tolist()) for _ in range(3)]
        removed = {step for begin, end in ranges for step in range(begin, end)}
        left = [step for step in range(400) if step not in removed]
        skipped = merge_ranges(ranges)
        assert [to_data_step(skipped, step) for step in range(200)] == left[:200]
        assert all(a[1] < b[0] for a, b in itertools.pairwise(skipped))


@pytest.mark.parametrize(
    ("steps", "done", "to"),
    [([20, 25], 33, 25), ([20, 25], 29, 20), ([25], 29, 0), ([25, 30], 29, None)],
)
def test_a_rewind_chooses_the_newest_checkpoint_that_is_early_enough(steps, done, to):
    """None if that was deleted, rather than the beginning."""
    assert Rewind(steps_back=5)._choose_checkpoint(steps, 2, done) == to
