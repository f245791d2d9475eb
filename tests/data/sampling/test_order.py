"""Tests of each order of rows."""

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.sampling.order import (
    Order,
    RandomOffset,
    RandomWindows,
    Sequential,
    Shuffled,
)
from lmx.data.schedule import BatchSchedule

ORDERS = [Shuffled(), RandomWindows(), RandomOffset(), Sequential()]


def find_offsets(order, size, batch_size, step, seed=0, rows=slice(None)):
    """The offsets of a step in a stream with (tokens, tokens per row)."""
    tokens, length = size
    schedule = BatchSchedule.build("Dataset", batch_size, length)
    return order.find_offsets(schedule.request(seed, step, rows), tokens)


def find_all(order: Order, size, batch_size: int, stop: int, seed=0):
    steps = [find_offsets(order, size, batch_size, n, seed) for n in range(stop)]
    return np.concatenate(steps)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_rows_do_not_depend_on_which_are_requested_together(order):
    size = (1000, 10)
    offsets = find_offsets(order, size, 8, 3, seed=4)
    for rows in (slice(0, 3), slice(3, 8), slice(None, None, 2)):
        part = find_offsets(order, size, 8, 3, seed=4, rows=rows)
        assert list(part) == list(offsets[rows])


@pytest.mark.parametrize("tokens", [2, 9, 101, 102, 1000])
def test_an_epoch_has_every_row_once(tokens):
    size = (tokens, 5)
    rows = Shuffled().count_rows(*size)
    offsets = find_all(Shuffled(), size, 4, 3 * rows)
    epochs = offsets.reshape(-1, rows)[:12]
    for epoch in epochs:
        assert sorted(epoch) == list(range(0, rows * 5, 5))


def test_epochs_and_seeds_have_different_orders():
    size = (1001, 10)
    epochs = [
        tuple(epoch)
        for seed in range(3)
        for epoch in find_all(Shuffled(), size, 10, 30, seed).reshape(3, 100)
    ]
    assert len(set(epochs)) == 9


@pytest.mark.parametrize("order", ORDERS[:3], ids=str)
def test_a_late_step_needs_no_earlier_ones(order):
    size = (10**10, 2048)
    offsets = find_offsets(order, size, 1024, 10**9)
    assert len(set(offsets)) == 1024
    assert 0 <= offsets.min() and offsets.max() < size[0] - 1


def test_a_pass_includes_the_last_incomplete_row():
    size = (42, 5)  # 41 targets
    assert (Shuffled().count_rows(*size), Sequential().count_rows(*size)) == (9, 9)
    assert RandomWindows().count_rows(*size) is None


def test_sequential_order_is_one_pass_from_the_first_token():
    size = (42, 5)
    assert list(find_all(Sequential(), size, 4, 3)) == list(range(0, 60, 5))
    with pytest.raises(ConfigError, match="no batch 3 in .*: 12 rows.*one pass has 9"):
        find_offsets(Sequential(), size, 4, 3)


def test_windows_start_at_every_offset_that_has_a_last_target():
    size = (14, 10)
    counts = np.bincount(find_all(RandomWindows(), size, 100, 100))
    assert len(counts) == 4
    assert abs(counts - 2500).max() < 250


def test_a_window_longer_than_the_text_is_refused_with_a_length_that_fits():
    with pytest.raises(
        ConfigError, match="10 tokens.*set sequence_length to 9 or less"
    ):
        RandomWindows().count_rows(10, 10)


@pytest.mark.parametrize("tokens", [17, 64, 65, 100, 1000])
def test_an_epoch_of_random_offset_repeats_no_target_and_skips_under_two_windows(
    tokens,
):
    size = (tokens, 8)
    count = RandomOffset().count_rows(*size)
    for offsets in find_all(RandomOffset(), size, 1, 3 * count, 5).reshape(3, count):
        targets = [o + 1 + i for o in offsets for i in range(size[1])]
        assert len(set(targets)) == len(targets)
        assert 1 <= min(targets) <= max(targets) < tokens
        assert tokens - 1 - len(targets) < 2 * size[1]


def test_random_offsets_differ_between_epochs_and_all_occur():
    size = (1000, 8)
    count = RandomOffset().count_rows(*size)
    offsets = {
        int(find_offsets(RandomOffset(), size, 1, epoch * count)[0]) % 8
        for epoch in range(200)
    }
    assert offsets == set(range(8))
