"""Tests of the document spans of a batch, against the documents."""

from dataclasses import replace

import numpy as np
import pytest

from lmx.data.dataset import Dataset, DocumentSpan
from lmx.data.sampling.fim import FillInTheMiddle, SpanCorruption
from lmx.data.sampling.mixture import Mixture, MixtureComponent
from lmx.data.sampling.order import RandomOffset, RandomWindows, Sequential, Shuffled
from lmx.data.sampling.packing import BestFitPacking, ConcatAndSplit
from lmx.data.sampling.transform import PauseTokens
from lmx.data.schedule import PiecewiseConstant
from lmx.data.store.store import Store
from lmx.data.synthetic.task import RepeatTask

SIZES = [3, 1, 9, 40, 2, 7, 1, 25, 5, 5, 12, 90, 6]
FIRST = 1000  # tokens are offsets in the stream plus this; sentinels are smaller


def find_start(store: Store, span: DocumentSpan) -> int:
    """The offset of a span in the stream."""
    assert span.document is not None and span.offset is not None
    return int(store.starts[span.document]) + span.offset


def list_offsets(batch, row: int, segment: int) -> list[int]:
    """The offsets in the stream of a segment's tokens."""
    here = batch.segments[row] == segment
    tokens = batch.tokens[row][here] - FIRST
    return tokens[tokens >= 0].tolist()


def check(rows: Dataset, store, steps: int) -> int:
    """Checks that every segment has one span; returns how many there are."""
    count = 0
    for step in range(steps):
        batch, found = rows.batch_at(3, step), rows.locate_at(3, step)
        places = {(r, s) for r, s in np.ndindex(len(batch.tokens), 40)}
        wanted = {(r, s) for r, s in places if s and list_offsets(batch, r, s)}
        assert [span[:2] for span in found] == sorted(wanted)
        for span in found:
            begin = find_start(store, span)
            end = begin + span.length
            assert span.source == "memory" and end in range(begin + 1, store.size)
            assert not np.isin(store.starts, np.arange(begin + 1, end)).any()
            assert list_offsets(batch, *span[:2]) == list(range(begin, end))
            count += 1
    return count


@pytest.mark.parametrize(
    "order",
    [Shuffled(), Sequential(), RandomWindows(), RandomOffset()],
    ids=lambda o: type(o).__name__,
)
def test_every_segment_of_a_stream_is_located_in_its_document(
    make_store, make_dataset, order
):
    store = make_store(SIZES, FIRST)
    assert check(make_dataset(store, ConcatAndSplit(), 3, 16, order), store, 3) > 10


def test_packed_documents_are_located_in_all_epochs_and_lengths(
    make_store, make_dataset
):
    store = make_store(SIZES, FIRST)
    length = PiecewiseConstant(values=(16, 32), boundaries=(5,))
    assert check(make_dataset(store, BestFitPacking(), 4, length), store, 9) > 60


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_spans_do_not_count_pauses_and_tokens_cut_off(
    open_config, make_store, make_dataset, rate
):
    store = make_store(SIZES, FIRST)
    rows = make_dataset(store, BestFitPacking(), 4, 32)
    paused = PauseTokens(source=open_config(dataset=rows), rate=rate).open()
    lost = check(rows, store, 5) - check(paused, store, 5)
    assert lost == 0 if rate == 0 else lost > 0


@pytest.mark.parametrize("packing", [BestFitPacking(), ConcatAndSplit()], ids=str)
def test_a_transformed_document_keeps_its_span(
    open_config, make_store, make_dataset, packing
):
    store = make_store(SIZES, FIRST)
    plain = make_dataset(store, packing, 4, 96)
    source = open_config(dataset=plain)
    for config in (
        FillInTheMiddle(source=source, rate=0.8),
        SpanCorruption(source=source, reserved_tokens=40),
    ):
        rows, count = config.open(), 0
        for step in range(3):
            batch, found = rows.batch_at(3, step), rows.locate_at(3, step)
            asked = rows.info.schedule.request(3, step, slice(None))
            inner = plain.read(asked._replace(sequence_length=config.source_length(96)))
            assert {span[:2] for span in found} == {
                (r, s) for r in range(4) for s in set(batch.segments[r].tolist()) - {0}
            }
            for span in found:
                begin, row = find_start(store, span), span.row
                here = batch.segments[row] == span.segment
                tokens = {*batch.tokens[row][here], *batch.targets[row][here]}
                text = {t - FIRST for t in tokens if t >= FIRST}
                end = begin + span.length
                assert span.source == "memory"
                assert set(range(begin, end)) <= text <= set(range(begin, end + 1))
                count += begin + FIRST in inner.tokens[row]
        assert count > 20


def test_rows_of_a_mixture_are_located_in_its_components(
    open_config, make_store, make_dataset
):
    stores = {name: make_store(SIZES, FIRST * n) for n, name in enumerate("abc", 1)}
    parts = {
        name: MixtureComponent(
            source=open_config(dataset=make_dataset(store, BestFitPacking(), 6, 128))
        )
        for name, store in stores.items()
    }
    rows, seen = Mixture(components=parts).open(), set()
    for step in range(4):
        batch = rows.batch_at(3, step)
        for span in rows.locate_at(3, step):
            seen.add(span.source)
            store = stores[span.source[0]]
            begin = find_start(store, span)
            here = batch.segments[span.row] == span.segment
            tokens = batch.tokens[span.row][here]
            text = store.read(begin, begin + span.length)
            np.testing.assert_array_equal(tokens, text)
        assert rows.locate_at(3, step, slice(2, 4)) == [
            span for span in rows.locate_at(3, step) if 2 <= span.row < 4
        ]
    assert seen == {"a/memory", "b/memory", "c/memory"}


def test_a_synthetic_dataset_has_segments_without_documents():
    source = RepeatTask(vocab=8, batch_size=2, sequence_length=10)
    rows = source.open()
    assert isinstance(rows, Dataset)
    assert rows.locate_at(0, 7) == [
        (0, 1, "RepeatTask", None, None, 10),
        (1, 1, "RepeatTask", None, None, 10),
    ]
    parts = {name: MixtureComponent(source=source) for name in "ab"}
    assert {o.source for o in Mixture(components=parts).open().locate_at(0, 0)} == {
        "a/RepeatTask",
        "b/RepeatTask",
    }


def test_a_store_locates_documents_of_a_source_in_two_parts(make_store):
    sources = {"a": (range(0, 3), range(5, 9)), "b": (range(3, 5), range(9, 13))}
    store = replace(make_store(SIZES), sources=sources)
    found = [store.locate(number) for number in range(13)]
    assert [place for place in found if place[0] == "a"] == [("a", n) for n in range(7)]
    assert [place for place in found if place[0] == "b"] == [("b", n) for n in range(6)]
    with pytest.raises(IndexError):
        store.locate(13)
