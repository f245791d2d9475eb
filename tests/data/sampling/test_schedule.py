"""Tests of schedules of batch shapes, against a loop over steps."""

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.sampling.packing import BestFitPacking, ConcatAndSplit
from lmx.data.schedule import (
    BatchSchedule,
    PiecewiseConstant,
    list_changes,
    value_at,
)

BATCH_SIZE = PiecewiseConstant(values=(2, 3, 5), boundaries=(4, 9))
LENGTH = PiecewiseConstant(values=(8, 16, 8), boundaries=(6, 11))


def test_a_value_is_constant_until_the_next_boundary():
    assert [BATCH_SIZE(step) for step in range(11)] == [2] * 4 + [3] * 5 + [5] * 2
    assert value_at(7, 3) == 7 and value_at(BATCH_SIZE, 10**9) == 5
    assert list_changes(BATCH_SIZE, 1, LENGTH) == [0, 4, 6, 9, 11]


def test_rows_of_each_length_have_consecutive_indices_and_tokens_add_up():
    schedule = BatchSchedule.build("Dataset", BATCH_SIZE, LENGTH)
    rows, tokens = {8: 0, 16: 0}, 0
    for step in range(20):
        batch_size, length = int(BATCH_SIZE(step)), int(LENGTH(step))
        assert schedule.stage_at(step)[1:] == (batch_size, length)
        assert schedule.count_tokens(step) == tokens
        request = schedule.request(1, step, slice(1, None))
        assert request.rows_before == rows[length]
        assert request.sequence_length == length
        rows[length] += batch_size
        indices = range(request.rows_before + 1, rows[length])
        assert list(request.indices) == list(indices)
        tokens += batch_size * length


@pytest.mark.parametrize("packing", [ConcatAndSplit(), BestFitPacking()], ids=str)
def test_rows_of_a_length_continue_where_it_was_last_in_use(
    make_store, make_dataset, packing
):
    store = make_store(np.random.default_rng(3).integers(2, 20, 40))
    dataset = make_dataset(store, packing, BATCH_SIZE, LENGTH)
    assert dataset.info.steps is None
    constant = {length: make_dataset(store, packing, 1, length) for length in (8, 16)}
    rows = {8: 0, 16: 0}
    for step in range(40):
        batch = dataset.batch_at(7, step)
        length = batch.tokens.shape[1]
        for row in range(len(batch.tokens)):
            single = constant[length].batch_at(7, rows[length])
            rows[length] += 1
            for field, single_field in zip(batch, single, strict=True):
                assert field[row].tolist() == single_field[0].tolist()


def test_a_late_step_needs_no_earlier_ones(make_store, make_dataset):
    dataset = make_dataset(make_store([9] * 50), BestFitPacking(), BATCH_SIZE, LENGTH)
    assert dataset.batch_at(0, 10**9).tokens.shape == (5, 8)


@pytest.mark.parametrize(
    ("values", "boundaries", "message"),
    [
        ((1, 2), (), r"values is \(1, 2\): it must be 1 number"),
        ((1, 2), (0,), "must be above 0"),
        ((1, 2, 3), (5, 5), "and increasing"),
    ],
)
def test_invalid_boundaries_are_refused(values, boundaries, message):
    with pytest.raises(ConfigError, match=message):
        PiecewiseConstant(values=values, boundaries=boundaries)


@pytest.mark.parametrize("value", [0, 1.5])
def test_an_invalid_shape_is_refused_in_any_stage(value):
    length = PiecewiseConstant(values=(8, value), boundaries=(3,))
    with pytest.raises(
        ConfigError, match=rf"Dataset\.sequence_length is {value}: it m"
    ):
        BatchSchedule.build("Dataset", 4, length)
