"""Tests of packed rows, against a plain loop and against unpacked documents."""

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
from lmx.train.loss import sum_cross_entropy
from tests.hash_init import HASHED

PACKINGS = pytest.mark.parametrize(
    "packing", [ConcatAndSplit(), BestFitPacking()], ids=str
)
SIZES = np.random.default_rng(0).integers(2, 30, 60)


def list_segments(batch: Batch) -> list[list[int]]:
    """The first token and the weighted targets of each segment, by a loop."""
    segments = []
    for row in range(len(batch.tokens)):
        before = 0
        for t, segment in enumerate(batch.segments[row].tolist()):
            if segment and segment != before:
                assert segment == before + 1 and batch.positions[row, t] == 0
                segments.append([int(batch.tokens[row, t])])
            elif segment:
                assert batch.positions[row, t] == batch.positions[row, t - 1] + 1
                assert batch.targets[row, t - 1] == batch.tokens[row, t]
                assert batch.weights[row, t - 1] == 1
            else:
                assert not any(int(field[row, t]) for field in batch)
            if batch.weights[row, t]:
                segments[-1].append(int(batch.targets[row, t]))
            before = segment
    return segments


def test_an_epoch_of_best_fit_has_every_document_once_in_one_segment(
    make_store, make_dataset
):
    store = make_store(SIZES)
    dataset = make_dataset(store, BestFitPacking(), 4, 32)
    segments = []
    count = dataset.pack(32).rows
    for step in range(dataset.info.steps):
        segments += list_segments(dataset.batch_at(3, step, slice(0, count - 4 * step)))
    spans = zip(store.starts[:-1].tolist(), store.starts[1:].tolist(), strict=True)
    assert sorted(segments) == [list(range(*span)) for span in spans]


@PACKINGS
def test_weighted_targets_are_the_next_tokens_of_the_same_document(
    make_store, make_dataset, packing
):
    store = make_store(SIZES)
    dataset = make_dataset(store, packing, 7, 16)
    document = np.searchsorted(store.starts, np.arange(store.size), side="right")
    for step in range(dataset.info.steps):
        batch = dataset.batch_at(0, step)
        weighted = batch.weights > 0
        assert (batch.targets[weighted] == batch.tokens[weighted] + 1).all()
        same = document[batch.targets] == document[batch.tokens]
        assert same[weighted].all()
        assert not same[(batch.segments > 0) & ~weighted].any()
        list_segments(batch)


def test_best_fit_has_less_than_one_percent_of_padding(make_store, make_dataset):
    sizes = np.random.default_rng(1).geometric(0.01, 20_000) + 1
    dataset = make_dataset(make_store(sizes), BestFitPacking(), 64, 256)
    batches = [dataset.batch_at(0, step) for step in range(20)]
    assert np.mean([batch.segments > 0 for batch in batches]) > 0.99


@PACKINGS
def test_sequential_order_ends_in_padding(make_store, make_dataset, packing):
    dataset = make_dataset(make_store(SIZES), packing, 1000, 16, Sequential())
    batch = dataset.batch_at(0, 0)
    count = dataset.pack(16).rows
    assert dataset.info.steps == 1 and batch.segments[:count, 0].all()
    assert not any(field[count:].any() for field in batch)
    with pytest.raises(ConfigError, match="no batch 1 in sequential order"):
        dataset.batch_at(0, 1)


@pytest.mark.parametrize("order", [RandomWindows(), RandomOffset()], ids=str)
def test_best_fit_refuses_orders_that_slice_a_stream(make_store, make_dataset, order):
    with pytest.raises(ConfigError, match="BestFitPacking.. has fixed rows: set order"):
        make_dataset(make_store(SIZES), BestFitPacking(), 4, 16, order)


def test_documents_of_one_row_do_not_see_each_other(make_store, make_dataset):
    """The loss of packed rows is that of the documents, each in a row of its own."""
    config = lmx.load_experiment(
        "tests/train/tiny.gin", [HASHED, "Decoder.vocab=600", "RepeatTask.vocab=600"]
    )
    graph, params = nnx.split(config.build().model(nnx.Rngs(0)))

    @jax.jit
    def sum_nats(params, batch):
        logits, _ = nnx.merge(graph, params).forward(
            batch.tokens, batch.positions, batch.segments
        )
        return sum_cross_entropy(logits, batch)[0]

    store = make_store(SIZES[:30])
    dataset = make_dataset(store, BestFitPacking(), 1000, 32, Sequential())
    rows = slice(0, dataset.pack(32).rows)
    packed = sum_nats(params, dataset.batch_at(0, 0, rows))
    unpacked = []
    for start, size in zip(store.starts[:-1], SIZES[:30] - 1, strict=True):
        row = fill_batch(store, slice_stream(store, np.array([start]), 32), (1, 32))
        unpacked.append([np.where(np.arange(32) < size, x, 0) for x in row])
    alone = Batch(*map(np.concatenate, zip(*unpacked, strict=True)))
    alone = sum_nats(params, Batch(*(x.astype(f"{x.dtype.kind}4") for x in alone)))
    assert packed.weight == alone.weight == (SIZES[:30] - 1).sum()
    np.testing.assert_allclose(packed.total, alone.total, rtol=1e-5)
