"""What each order of reading must keep."""

import numpy as np
import pytest

from lmx.config.names import ConfigError
from lmx.data.order import InOrder, Order, Phased, Shuffled, Stream, Windows

ORDERS = pytest.mark.parametrize(
    "order", [Shuffled(), Windows(), Phased(), InOrder()], ids=str
)


def all_offsets(order: Order, stream: Stream, start: int, stop: int, seed: int = 0):
    rows = np.arange(stream.batch)
    steps = [order.offsets(seed, step, rows, stream) for step in range(start, stop)]
    return np.concatenate(steps)


@ORDERS
def test_rows_asked_for_apart_are_those_asked_for_together(order):
    stream = Stream(tokens=1000, batch=8, length=10)
    whole = order.offsets(4, 3, np.arange(8), stream)
    for rows in (np.arange(0, 3), np.arange(3, 8), np.arange(8)[::2]):
        assert list(order.offsets(4, 3, rows, stream)) == list(whole[rows])


@pytest.mark.parametrize("tokens", [2, 9, 101, 102, 1000])
def test_an_epoch_takes_every_row_once_and_drops_none(tokens):
    stream = Stream(tokens=tokens, batch=4, length=5)
    offsets = all_offsets(Shuffled(), stream, 0, 3 * stream.rows)
    epochs = offsets.reshape(-1, stream.rows)[:12]
    for epoch in epochs:
        assert sorted(epoch) == list(range(0, stream.rows * 5, 5))


def test_epochs_differ_and_so_do_seeds():
    stream = Stream(tokens=1001, batch=10, length=10)
    epochs = [
        tuple(all_offsets(Shuffled(), stream, 10 * epoch, 10 * epoch + 10, seed))
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(epochs)) == 9


@pytest.mark.parametrize("order", [Shuffled(), Windows(), Phased()], ids=str)
def test_steps_beyond_a_billion_are_read_as_the_first(order):
    stream = Stream(tokens=10**10, batch=1024, length=2048)
    offsets = order.offsets(0, 10**9, np.arange(1024), stream)
    assert len(set(offsets)) == 1024
    assert 0 <= offsets.min() and offsets.max() < stream.tokens - 1


def test_steps_of_a_pass_count_the_batch_that_is_not_full():
    stream = Stream(tokens=42, batch=4, length=5)  # 41 targets, 9 rows
    assert (Shuffled().steps(stream), InOrder().steps(stream)) == (3, 3)
    assert Windows().steps(stream) is None


def test_in_order_goes_from_the_first_token_on():
    stream = Stream(tokens=42, batch=4, length=5)
    assert list(all_offsets(InOrder(), stream, 0, 3)) == list(range(0, 60, 5))


def test_in_order_has_no_batch_after_its_last():
    stream = Stream(tokens=42, batch=4, length=5)
    with pytest.raises(ConfigError, match="no batch 3 in order.*3 batches of 4"):
        all_offsets(InOrder(), stream, 3, 4)


def test_windows_begin_anywhere_that_leaves_room_for_the_last_target():
    stream = Stream(tokens=14, batch=100, length=10)
    counts = np.bincount(all_offsets(Windows(), stream, 0, 100))
    assert len(counts) == 4
    assert abs(counts - 2500).max() < 250


def test_a_window_longer_than_the_text_is_refused_with_one_that_fits():
    with pytest.raises(ConfigError, match="10 tokens.*set length to 9 or less"):
        Windows().steps(Stream(tokens=10, batch=1, length=10))


@pytest.mark.parametrize("tokens", [17, 64, 65, 100, 1000])
def test_a_phased_epoch_reads_no_target_twice_and_skips_less_than_two_windows(tokens):
    stream = Stream(tokens=tokens, batch=1, length=8)
    order = Phased()
    count = order.steps(stream)
    assert count is not None
    for epoch in range(3):
        rows = np.zeros(1, np.int64)
        offsets = [
            int(order.offsets(5, epoch * count + i, rows, stream)[0])
            for i in range(count)
        ]
        read = [o + 1 + i for o in offsets for i in range(stream.length)]
        assert len(set(read)) == len(read) and 1 <= min(read) <= max(read) < tokens
        assert tokens - 1 - len(read) < 2 * stream.length


def test_phases_differ_between_epochs_and_all_occur():
    stream = Stream(tokens=1000, batch=1, length=8)
    count = Phased().steps(stream)
    assert count is not None
    rows = np.zeros(1, np.int64)
    phases = {
        int(Phased().offsets(0, epoch * count, rows, stream)[0]) % 8
        for epoch in range(200)
    }
    assert phases == set(range(8))
