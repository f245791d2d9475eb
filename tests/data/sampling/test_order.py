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
    TokenStream,
)
from lmx.data.schedule import BatchSchedule

ORDERS = [Shuffled(), RandomWindows(), RandomOffset(), Sequential()]


def find_offsets(order, stream, batch_size, step, seed=0, rows=slice(None)):
    schedule = BatchSchedule.build("Dataset", batch_size, stream.sequence_length)
    return order.find_offsets(schedule.request(seed, step, rows), stream)


def find_all(order: Order, stream: TokenStream, batch_size: int, stop: int, seed=0):
    steps = [find_offsets(order, stream, batch_size, n, seed) for n in range(stop)]
    return np.concatenate(steps)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_rows_do_not_depend_on_which_are_requested_together(order):
    stream = TokenStream(tokens=1000, sequence_length=10)
    offsets = find_offsets(order, stream, 8, 3, seed=4)
    for rows in (slice(0, 3), slice(3, 8), slice(None, None, 2)):
        part = find_offsets(order, stream, 8, 3, seed=4, rows=rows)
        assert list(part) == list(offsets[rows])


@pytest.mark.parametrize("tokens", [2, 9, 101, 102, 1000])
def test_an_epoch_has_every_row_once(tokens):
    stream = TokenStream(tokens=tokens, sequence_length=5)
    offsets = find_all(Shuffled(), stream, 4, 3 * stream.rows)
    epochs = offsets.reshape(-1, stream.rows)[:12]
    for epoch in epochs:
        assert sorted(epoch) == list(range(0, stream.rows * 5, 5))


def test_epochs_and_seeds_have_different_orders():
    stream = TokenStream(tokens=1001, sequence_length=10)
    epochs = [
        tuple(epoch)
        for seed in range(3)
        for epoch in find_all(Shuffled(), stream, 10, 30, seed).reshape(3, 100)
    ]
    assert len(set(epochs)) == 9


@pytest.mark.parametrize("order", ORDERS[:3], ids=str)
def test_a_late_step_needs_no_earlier_ones(order):
    stream = TokenStream(tokens=10**10, sequence_length=2048)
    offsets = find_offsets(order, stream, 1024, 10**9)
    assert len(set(offsets)) == 1024
    assert 0 <= offsets.min() and offsets.max() < stream.tokens - 1


def test_a_pass_includes_the_last_incomplete_row():
    stream = TokenStream(tokens=42, sequence_length=5)  # 41 targets
    assert (Shuffled().count_rows(stream), Sequential().count_rows(stream)) == (9, 9)
    assert RandomWindows().count_rows(stream) is None


def test_sequential_order_is_one_pass_from_the_first_token():
    stream = TokenStream(tokens=42, sequence_length=5)
    assert list(find_all(Sequential(), stream, 4, 3)) == list(range(0, 60, 5))
    with pytest.raises(ConfigError, match="no batch 3 in .*: 12 rows.*one pass has 9"):
        find_offsets(Sequential(), stream, 4, 3)


def test_windows_start_at_every_offset_that_has_a_last_target():
    stream = TokenStream(tokens=14, sequence_length=10)
    counts = np.bincount(find_all(RandomWindows(), stream, 100, 100))
    assert len(counts) == 4
    assert abs(counts - 2500).max() < 250


def test_a_window_longer_than_the_text_is_refused_with_a_length_that_fits():
    with pytest.raises(
        ConfigError, match="10 tokens.*set sequence_length to 9 or less"
    ):
        RandomWindows().count_rows(TokenStream(tokens=10, sequence_length=10))


@pytest.mark.parametrize("tokens", [17, 64, 65, 100, 1000])
def test_an_epoch_of_random_offset_repeats_no_target_and_skips_under_two_windows(
    tokens,
):
    stream = TokenStream(tokens=tokens, sequence_length=8)
    count = RandomOffset().count_rows(stream)
    assert count is not None
    for offsets in find_all(RandomOffset(), stream, 1, 3 * count, 5).reshape(3, count):
        targets = [o + 1 + i for o in offsets for i in range(stream.sequence_length)]
        assert len(set(targets)) == len(targets)
        assert 1 <= min(targets) <= max(targets) < tokens
        assert tokens - 1 - len(targets) < 2 * stream.sequence_length


def test_random_offsets_differ_between_epochs_and_all_occur():
    stream = TokenStream(tokens=1000, sequence_length=8)
    count = RandomOffset().count_rows(stream)
    assert count is not None
    offsets = {
        int(find_offsets(RandomOffset(), stream, 1, epoch * count)[0]) % 8
        for epoch in range(200)
    }
    assert offsets == set(range(8))
