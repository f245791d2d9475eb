"""What each order of reading must keep."""

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
from lmx.data.sampling.schedule import BatchSchedule

ORDERS = pytest.mark.parametrize(
    "order", [Shuffled(), RandomWindows(), RandomOffset(), Sequential()], ids=str
)


def offsets_at(order, stream, batch, step, seed=0, rows=slice(None)):
    course = BatchSchedule.build("Source", batch, stream.length)
    return order.find_offsets(course.request(seed, step, rows), stream)


def all_offsets(
    order: Order, stream: TokenStream, batch: int, stop: int, seed: int = 0
):
    steps = [offsets_at(order, stream, batch, step, seed) for step in range(stop)]
    return np.concatenate(steps)


@ORDERS
def test_rows_asked_for_apart_are_those_asked_for_together(order):
    stream = TokenStream(tokens=1000, sequence_length=10)
    whole = offsets_at(order, stream, 8, 3, seed=4)
    for rows in (slice(0, 3), slice(3, 8), slice(None, None, 2)):
        part = offsets_at(order, stream, 8, 3, seed=4, rows=rows)
        assert list(part) == list(whole[rows])


@pytest.mark.parametrize("tokens", [2, 9, 101, 102, 1000])
def test_an_epoch_takes_every_row_once_and_drops_none(tokens):
    stream = TokenStream(tokens=tokens, sequence_length=5)
    offsets = all_offsets(Shuffled(), stream, 4, 3 * stream.rows)
    epochs = offsets.reshape(-1, stream.rows)[:12]
    for epoch in epochs:
        assert sorted(epoch) == list(range(0, stream.rows * 5, 5))


def test_epochs_differ_and_so_do_seeds():
    stream = TokenStream(tokens=1001, sequence_length=10)
    epochs = [
        tuple(epoch)
        for seed in range(3)
        for epoch in all_offsets(Shuffled(), stream, 10, 30, seed).reshape(3, 100)
    ]
    assert len(set(epochs)) == 9


@pytest.mark.parametrize(
    "order", [Shuffled(), RandomWindows(), RandomOffset()], ids=str
)
def test_steps_beyond_a_billion_are_read_as_the_first(order):
    stream = TokenStream(tokens=10**10, sequence_length=2048)
    offsets = offsets_at(order, stream, 1024, 10**9)
    assert len(set(offsets)) == 1024
    assert 0 <= offsets.min() and offsets.max() < stream.tokens - 1


def test_a_pass_has_the_row_that_is_not_full():
    stream = TokenStream(tokens=42, sequence_length=5)  # 41 targets
    assert (Shuffled().count_rows(stream), Sequential().count_rows(stream)) == (9, 9)
    assert RandomWindows().count_rows(stream) is None


def test_in_order_goes_from_the_first_token_on():
    stream = TokenStream(tokens=42, sequence_length=5)
    assert list(all_offsets(Sequential(), stream, 4, 3)) == list(range(0, 60, 5))


def test_in_order_has_no_batch_after_its_last():
    stream = TokenStream(tokens=42, sequence_length=5)
    with pytest.raises(ConfigError, match="no batch 3 in order: 12 rows.*pass has 9"):
        offsets_at(Sequential(), stream, 4, 3)


def test_windows_begin_anywhere_that_leaves_room_for_the_last_target():
    stream = TokenStream(tokens=14, sequence_length=10)
    counts = np.bincount(all_offsets(RandomWindows(), stream, 100, 100))
    assert len(counts) == 4
    assert abs(counts - 2500).max() < 250


def test_a_window_longer_than_the_text_is_refused_with_one_that_fits():
    with pytest.raises(ConfigError, match="10 tokens.*set length to 9 or less"):
        RandomWindows().count_rows(TokenStream(tokens=10, sequence_length=10))


@pytest.mark.parametrize("tokens", [17, 64, 65, 100, 1000])
def test_a_phased_epoch_reads_no_target_twice_and_skips_less_than_two_windows(tokens):
    stream = TokenStream(tokens=tokens, sequence_length=8)
    order = RandomOffset()
    count = order.count_rows(stream)
    assert count is not None
    for offsets in all_offsets(order, stream, 1, 3 * count, 5).reshape(3, count):
        read = [o + 1 + i for o in offsets for i in range(stream.sequence_length)]
        assert len(set(read)) == len(read) and 1 <= min(read) <= max(read) < tokens
        assert tokens - 1 - len(read) < 2 * stream.sequence_length


def test_phases_differ_between_epochs_and_all_occur():
    stream = TokenStream(tokens=1000, sequence_length=8)
    count = RandomOffset().count_rows(stream)
    assert count is not None
    phases = {
        int(offsets_at(RandomOffset(), stream, 1, epoch * count)[0]) % 8
        for epoch in range(200)
    }
    assert phases == set(range(8))
