"""What schedules of shapes must keep, against a loop over steps."""

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.sampling.packing import BestFitPacking, ConcatAndSplit
from lmx.data.sampling.schedule import (
    BatchSchedule,
    PiecewiseConstant,
    list_changes,
    value_at,
)

BATCH = PiecewiseConstant(values=(2, 3, 5), boundaries=(4, 9))
LENGTH = PiecewiseConstant(values=(8, 16, 8), boundaries=(6, 11))


def test_a_value_holds_until_the_next_begins():
    assert [BATCH(step) for step in range(11)] == [2] * 4 + [3] * 5 + [5] * 2
    assert value_at(7, 3) == 7 and value_at(BATCH, 10**9) == 5
    assert list_changes(BATCH, 1, LENGTH) == [0, 4, 6, 9, 11]


def test_rows_of_each_length_are_numbered_through_and_tokens_add_up():
    course = BatchSchedule.build("Source", BATCH, LENGTH)
    given, tokens = {8: 0, 16: 0}, 0
    for step in range(20):
        batch, length = int(BATCH(step)), int(LENGTH(step))
        assert course.stage_at(step)[1:] == (batch, length)
        assert course.count_tokens(step) == tokens
        wanted = course.request(1, step, slice(1, None))
        assert (wanted.rows_before, wanted.sequence_length) == (given[length], length)
        numbers = range(given[length] + 1, given[length] + batch)
        assert list(wanted.indices) == list(numbers)
        given[length] += batch
        tokens += batch * length


@pytest.mark.parametrize("packing", [ConcatAndSplit(), BestFitPacking()], ids=str)
def test_each_length_reads_its_rows_once_an_epoch(make_store, make_rows, packing):
    """Rows of a length go on where they stopped when it was last in use."""
    store = make_store(np.random.default_rng(3).integers(2, 20, 40))
    rows = make_rows(store, packing, BATCH, LENGTH)
    assert rows.info.steps is None
    constant = {length: make_rows(store, packing, 1, length) for length in (8, 16)}
    given = {8: 0, 16: 0}
    for step in range(40):
        batch = rows.batch_at(7, step)
        length = batch.tokens.shape[1]
        for row in range(len(batch.tokens)):
            one = constant[length].batch_at(7, given[length])
            given[length] += 1
            for got, wanted in zip(batch, one, strict=True):
                assert got[row].tolist() == wanted[0].tolist()


def test_a_late_step_of_a_schedule_is_read_at_once(make_store, make_rows):
    rows = make_rows(make_store([9] * 50), BestFitPacking(), BATCH, LENGTH)
    assert rows.batch_at(0, 10**9).tokens.shape == (5, 8)


@pytest.mark.parametrize(
    ("values", "at", "message"),
    [
        ((1, 2), (), "2 values and 0 steps"),
        ((1, 2), (0,), "steps above 0"),
        ((1, 2, 3), (5, 5), "each after the one before"),
    ],
)
def test_steps_that_make_no_stages_are_refused(values, at, message):
    with pytest.raises(ConfigError, match=message):
        PiecewiseConstant(values=values, boundaries=at)


@pytest.mark.parametrize(
    ("value", "message"), [(0, "is 0: at least 1"), (1.5, "is 1.5: it must be whole")]
)
def test_a_shape_that_cannot_be_is_refused_in_any_stage(value, message):
    with pytest.raises(ConfigError, match=rf"Source\.length {message}"):
        BatchSchedule.build(
            "Source", 4, PiecewiseConstant(values=(8, value), boundaries=(3,))
        )
