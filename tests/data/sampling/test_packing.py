"""What packed rows must keep, against a plain loop and against documents alone."""

import jax
import numpy as np
import pytest
from flax import nnx

import lmx
from lmx.config.registry import ConfigError
from lmx.core.batch import Batch
from lmx.data.sampling.order import RandomOffset, RandomWindows, Sequential
from lmx.data.sampling.packing import (
    BestFitPacking,
    ConcatAndSplit,
    fill_batch,
    slice_stream,
)
from lmx.train.loss.next_token import sum_cross_entropy

PACKINGS = pytest.mark.parametrize(
    "packing", [ConcatAndSplit(), BestFitPacking()], ids=str
)
SIZES = np.random.default_rng(0).integers(2, 30, 60)


def texts(batch: Batch) -> list[list[int]]:
    """The learned text of each segment, by a loop over tokens."""
    found = []
    for row in range(len(batch.tokens)):
        before = 0
        for t, segment in enumerate(batch.segments[row].tolist()):
            if segment and segment != before:
                assert segment == before + 1 and batch.positions[row, t] == 0
                found.append([int(batch.tokens[row, t])])
            elif segment:
                assert batch.positions[row, t] == batch.positions[row, t - 1] + 1
                assert batch.targets[row, t - 1] == batch.tokens[row, t]
                assert batch.weights[row, t - 1] == 1
            else:
                assert not any(int(field[row, t]) for field in batch)
            if batch.weights[row, t]:
                found[-1].append(int(batch.targets[row, t]))
            before = segment
    return found


def test_an_epoch_of_best_fit_has_every_document_whole_and_once(make_store, make_rows):
    store = make_store(SIZES)
    rows = make_rows(store, BestFitPacking(), 4, 32)
    seen = []
    count = rows.pack(32).rows
    for step in range(rows.info.steps):
        seen += texts(rows.batch_at(3, step, slice(0, count - 4 * step)))
    spans = zip(store.starts[:-1].tolist(), store.starts[1:].tolist(), strict=True)
    assert sorted(seen) == [list(range(*span)) for span in spans]


@PACKINGS
def test_targets_are_the_tokens_that_follow_and_none_of_another_document(
    make_store, make_rows, packing
):
    store = make_store(SIZES)
    rows = make_rows(store, packing, 7, 16)
    document = np.searchsorted(store.starts, np.arange(store.size), side="right")
    for step in range(rows.info.steps):
        batch = rows.batch_at(0, step)
        learned = batch.weights > 0
        assert (batch.targets[learned] == batch.tokens[learned] + 1).all()
        same = document[batch.targets] == document[batch.tokens]
        assert (same[learned]).all()
        live = batch.segments > 0
        assert not same[live & ~learned].any()
        texts(batch)


def test_best_fit_leaves_less_than_a_hundredth_of_many_rows_empty(
    make_store, make_rows
):
    sizes = np.random.default_rng(1).geometric(0.01, 20_000) + 1
    rows = make_rows(make_store(sizes), BestFitPacking(), 64, 256)
    live = np.mean([
        (rows.batch_at(0, step).segments > 0).mean() for step in range(20)
    ])  # fmt: skip
    assert live > 0.99


@PACKINGS
def test_in_order_ends_in_padding(make_store, make_rows, packing):
    rows = make_rows(make_store(SIZES), packing, 1000, 16, Sequential())
    batch = rows.batch_at(0, 0)
    count = rows.pack(16).rows
    assert rows.info.steps == 1 and batch.segments[:count, 0].all()
    assert not any(field[count:].any() for field in batch)
    with pytest.raises(ConfigError, match="no batch 1 in order"):
        rows.batch_at(0, 1)


@pytest.mark.parametrize("order", [RandomWindows(), RandomOffset()], ids=str)
def test_rows_that_are_made_are_not_cut_anew(make_store, make_rows, order):
    with pytest.raises(ConfigError, match="BestFit.. has rows already: set order"):
        make_rows(make_store(SIZES), BestFitPacking(), 4, 16, order)


def test_a_document_does_not_see_those_it_shares_a_row_with(make_store, make_rows):
    """The nats of packed rows are those of documents, each in a row of its own."""
    page = "tests/train/tiny.gin"
    config = lmx.load_experiment(page, ["Decoder.vocab=600", "RepeatTask.vocab=600"])
    model = config.build().model(nnx.Rngs(0))
    graph, params = nnx.split(model)

    @jax.jit
    def nats(params, batch):
        logits, _ = nnx.merge(graph, params).forward(
            batch.tokens, batch.positions, batch.segments
        )
        return sum_cross_entropy(logits, batch)[0]

    store = make_store(SIZES[:30])
    rows = make_rows(store, BestFitPacking(), 1000, 32, Sequential())
    count = rows.pack(32).rows
    packed = nats(params, rows.batch_at(0, 0, slice(0, count)))
    alone = [
        Batch(
            *(
                x[:, :size]
                for x in fill_batch(
                    store, slice_stream(store, np.array([begin]), 32), (1, 32)
                )
            )
        )
        for begin, size in zip(store.starts[:-1], SIZES[:30] - 1, strict=True)
    ]
    padded = [
        Batch(*(np.pad(x, ((0, 0), (0, 32 - x.shape[1]))) for x in batch))
        for batch in alone
    ]
    one = nats(params, Batch(*map(np.concatenate, zip(*padded, strict=True))))
    assert packed.weight == one.weight == (SIZES[:30] - 1).sum()
    np.testing.assert_allclose(packed.total, one.total, rtol=1e-5)
