"""Whose documents a batch tells, against the documents themselves."""

from dataclasses import replace

import numpy as np
import pytest

from lmx.data.dataset import Dataset, DocumentSpan
from lmx.data.sampling.fim import FillInTheMiddle
from lmx.data.sampling.mixture import Mixture, MixtureComponent
from lmx.data.sampling.order import RandomOffset, RandomWindows, Sequential, Shuffled
from lmx.data.sampling.packing import BestFitPacking, ConcatAndSplit
from lmx.data.sampling.pause_tokens import PauseTokens
from lmx.data.sampling.schedule import PiecewiseConstant
from lmx.data.sampling.span_corruption import SpanCorruption
from lmx.data.store.store import Store
from lmx.data.synthetic.repeat import RepeatTask

SIZES = [3, 1, 9, 40, 2, 7, 1, 25, 5, 5, 12, 90, 6]
FIRST = 1000  # tokens are places in the stream from there on, and marks are below it


def begin_of(store: Store, origin: DocumentSpan) -> int:
    """Where in the stream the part of a document begins."""
    assert origin.document is not None and origin.offset is not None
    return int(store.starts[origin.document]) + origin.offset


def said(batch, row: int, segment: int) -> list[int]:
    """The places of the stream that a segment tells, in order."""
    here = batch.segments[row] == segment
    tokens = batch.tokens[row][here] - FIRST
    return tokens[tokens >= 0].tolist()


def check(rows: Dataset, store, steps: int) -> int:
    """Every segment is told of, once, by the document it is of; how many there were."""
    count = 0
    for step in range(steps):
        batch, found = rows.batch_at(3, step), rows.locate_at(3, step)
        places = {(r, s) for r, s in np.ndindex(len(batch.tokens), 40)}
        wanted = {(r, s) for r, s in places if s and said(batch, r, s)}
        assert [origin[:2] for origin in found] == sorted(wanted)
        for origin in found:
            begin = begin_of(store, origin)
            end = begin + origin.length
            assert origin.source == "made" and end in range(begin + 1, store.size)
            assert not np.isin(store.starts, np.arange(begin + 1, end)).any()
            assert said(batch, *origin[:2]) == list(range(begin, end))
            count += 1
    return count


@pytest.mark.parametrize(
    "order",
    [Shuffled(), Sequential(), RandomWindows(), RandomOffset()],
    ids=lambda o: type(o).__name__,
)
def test_each_stretch_of_a_stream_is_found_in_its_document(
    make_store, make_rows, order
):
    store = make_store(SIZES, FIRST)
    assert check(make_rows(store, ConcatAndSplit(), 3, 16, order), store, 3) > 10


def test_documents_packed_whole_are_found_through_epochs_and_lengths(
    make_store, make_rows
):
    store = make_store(SIZES, FIRST)
    length = PiecewiseConstant(values=(16, 32), boundaries=(5,))
    assert check(make_rows(store, BestFitPacking(), 4, length), store, 9) > 60


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_pauses_and_what_they_push_out_do_not_count(
    open_config, make_store, make_rows, share
):
    store = make_store(SIZES, FIRST)
    rows = make_rows(store, BestFitPacking(), 4, 32)
    paused = PauseTokens(source=open_config(dataset=rows), rate=share).open()
    lost = check(rows, store, 5) - check(paused, store, 5)
    assert lost == 0 if share == 0 else lost > 0


@pytest.mark.parametrize("packing", [BestFitPacking(), ConcatAndSplit()], ids=str)
def test_a_document_told_in_another_way_is_still_that_document(
    open_config, make_store, make_rows, packing
):
    store = make_store(SIZES, FIRST)
    plain = make_rows(store, packing, 4, 96)
    source = open_config(dataset=plain)
    for how in (
        FillInTheMiddle(source=source, rate=0.8),
        SpanCorruption(source=source, reserved_tokens=40),
    ):
        rows, count = how.open(), 0
        for step in range(3):
            batch, found = rows.batch_at(3, step), rows.locate_at(3, step)
            asked = rows.info.schedule.request(3, step, slice(None))
            inner = plain.read(asked._replace(sequence_length=how.source_length(96)))
            assert {origin[:2] for origin in found} == {
                (r, s) for r in range(4) for s in set(batch.segments[r].tolist()) - {0}
            }
            for origin in found:
                begin, row = begin_of(store, origin), origin.row
                here = batch.segments[row] == origin.segment
                told = {*batch.tokens[row][here], *batch.targets[row][here]}
                text = {t - FIRST for t in told if t >= FIRST}
                end = begin + origin.length
                assert origin.source == "made"
                assert set(range(begin, end)) <= text <= set(range(begin, end + 1))
                count += begin + FIRST in inner.tokens[row]
        assert count > 20


def test_rows_of_a_mixture_are_those_of_its_parts(open_config, make_store, make_rows):
    stores = {name: make_store(SIZES, FIRST * n) for n, name in enumerate("abc", 1)}
    parts = {
        name: MixtureComponent(
            source=open_config(dataset=make_rows(store, BestFitPacking(), 6, 128))
        )
        for name, store in stores.items()
    }
    rows, seen = Mixture(components=parts).open(), set()
    for step in range(4):
        batch = rows.batch_at(3, step)
        for origin in rows.locate_at(3, step):
            seen.add(origin.source)
            store = stores[origin.source[0]]
            begin = begin_of(store, origin)
            here = batch.segments[origin.row] == origin.segment
            told = batch.tokens[origin.row][here]
            text = store.read(begin, begin + origin.length)
            np.testing.assert_array_equal(told, text)
        assert rows.locate_at(3, step, slice(2, 4)) == [
            origin for origin in rows.locate_at(3, step) if 2 <= origin.row < 4
        ]
    assert seen == {"a/made", "b/made", "c/made"}


def test_a_made_language_has_segments_and_no_documents():
    source = RepeatTask(vocab=8, batch_size=2, sequence_length=10)
    rows = source.open()
    assert isinstance(rows, Dataset)
    assert rows.locate_at(0, 7) == [
        (0, 1, "Echo", None, None, 10),
        (1, 1, "Echo", None, None, 10),
    ]
    parts = {name: MixtureComponent(source=source) for name in "ab"}
    assert {o.source for o in Mixture(components=parts).open().locate_at(0, 0)} == {
        "a/RepeatTask",
        "b/RepeatTask",
    }


def test_a_store_knows_the_source_of_a_document_that_came_in_two_parts(make_store):
    sources = {"a": (range(0, 3), range(5, 9)), "b": (range(3, 5), range(9, 13))}
    store = replace(make_store(SIZES), sources=sources)
    found = [store.locate(number) for number in range(13)]
    assert [place for place in found if place[0] == "a"] == [("a", n) for n in range(7)]
    assert [place for place in found if place[0] == "b"] == [("b", n) for n in range(6)]
    with pytest.raises(IndexError):
        store.locate(13)
