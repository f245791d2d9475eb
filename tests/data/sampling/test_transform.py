"""What infilled and corrupted rows must keep: told back, they are what they were."""

import dataclasses

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.dataset import Dataset, DatasetConfig
from lmx.data.sampling.fim import FillInTheMiddle
from lmx.data.sampling.packing import BestFitPacking, ConcatAndSplit
from lmx.data.sampling.span_corruption import SpanCorruption
from lmx.data.sampling.transform import split_documents
from lmx.data.synthetic.repeat import RepeatTask
from lmx.data.tokenizer.base import CharTokenizer

BEGIN, END, VOCAB = 256, 257, 258
LENGTH = 96


@pytest.fixture(params=[BestFitPacking(), ConcatAndSplit()], ids=str)
def source(request, open_config, make_store, make_rows) -> DatasetConfig:
    """Documents of bytes between begin and end, some longer than a row."""
    random = np.random.default_rng(0)
    store = make_store(random.integers(2, 60, 80).tolist() + [150, 400])
    tokens = random.integers(0, 256, store.size).astype(np.uint16)
    tokens[store.starts[:-1]], tokens[store.starts[1:] - 1] = BEGIN, END
    store = dataclasses.replace(
        store, parts=[tokens], part_offsets=np.array([0, len(tokens)])
    )
    return open_config(dataset=make_rows(store, request.param, 6, LENGTH))


def both(made):
    """The texts of each row before and after, and the weights after."""
    for step in range(12):
        batch = made.batch_at(4, step)
        wanted = made.info.schedule.request(4, step, slice(None))
        inner = made.config.source_length(LENGTH)
        plain = made.source.read(wanted._replace(sequence_length=inner))
        assert batch.tokens.shape == (6, LENGTH)
        assert [x.dtype for x in batch] == [x.dtype for x in plain]
        for row in range(6):
            yield plain, batch, row


def told_back(tokens: list[int], prefix, suffix, middle) -> list[int]:
    """A document as it was before its middle was told last."""
    if middle not in tokens:
        return tokens
    at = tokens.index(middle)
    head, tail = tokens[:at], tokens[at + 1 :]
    first, last = head.index(prefix), head.index(suffix)
    assert first < 2 and head.count(prefix) == head.count(suffix) == 1
    end = [tail.pop()] if tail and tail[-1] == END else []
    if last == first + 1:  # the suffix came first, and the prefix after the mark
        return head[:first] + tail + head[last + 1 :] + end
    return head[:first] + head[first + 1 : last] + tail + head[last + 1 :] + end


@pytest.mark.parametrize("spm", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("room", [3, 48])
def test_an_infilled_row_told_back_is_the_row_that_it_was(source, spm, room):
    made = FillInTheMiddle(
        source=source, rate=0.7, spm_rate=spm, reserved_tokens=room
    ).open()
    marks, told = range(VOCAB, VOCAB + 3), 0
    for plain, batch, row in both(made):
        after = [
            text["token"].tolist() for text in split_documents(batch, row).values()
        ]
        before = [
            text["token"].tolist() for text in split_documents(plain, row).values()
        ]
        assert [told_back(text, *marks) for text in after] == before
        here = sum(VOCAB in text for text in after)
        told += here
        assert 3 * here <= room
    assert told > 20


def test_orders_and_rates_are_as_often_as_they_should_be(
    open_config, make_store, make_rows
):
    rows = make_rows(make_store([20] * 4000), BestFitPacking(), 100, 100)
    made = FillInTheMiddle(
        source=open_config(dataset=rows), rate=0.5, spm_rate=0.25, sentinels=None
    ).open()
    every = [
        text["token"].tolist()
        for batch in (made.batch_at(0, step) for step in range(5))
        for row in range(100)
        for text in split_documents(batch, row).values()
    ]
    told = [text for text in every if VOCAB in text]
    reverse = [t for t in told if t.index(VOCAB + 1) == t.index(VOCAB) + 1]
    assert abs(len(told) / len(every) - 0.5) < 0.05
    # An empty prefix looks the same: one cut in 21 places twice is at the beginning.
    empty = 1 - (20 / 21) ** 2
    assert abs(len(reverse) / len(told) - (0.25 + 0.75 * empty)) < 0.06


@pytest.mark.parametrize("learned", ["all", "middle"])
@pytest.mark.parametrize("spm", [0.0, 1.0])
def test_what_is_learned_of_an_infilled_document(source, learned, spm):
    made = FillInTheMiddle(
        source=source, rate=1.0, spm_rate=spm, loss_on=learned
    ).open()
    for _, batch, row in both(made):
        for text in split_documents(batch, row).values():
            tokens, weights = text["token"].tolist(), text["weight"][1:]
            if learned == "all" or VOCAB not in tokens:
                assert (weights == 1).all()
                continue
            if VOCAB + 2 not in tokens:  # its last token, before an empty middle
                assert not weights.any()
                continue
            middle = tokens.index(VOCAB + 2)
            assert (weights[:middle] == 0).all()
            if spm:  # the prefix comes between
                assert (np.diff(weights[middle:]) >= 0).all()
            else:
                assert (weights[middle:] == 1).all()


def restored(tokens: list[int], marks: range) -> list[int]:
    """A document with its spans back where they were taken out."""
    first = marks[0]
    if first not in tokens:
        return tokens
    second = tokens.index(first, tokens.index(first) + 1)
    kept, told = tokens[:second], tokens[second:]
    end = [told.pop()] if told[-1] == END else []
    spans: dict[int, list[int]] = {}
    for token in told:
        if token in marks:
            span = spans.setdefault(token, [])
        else:
            span.append(token)
    assert [t for t in kept if t in marks] == list(spans)[:-1]
    assert list(spans) == list(marks[: len(spans)])
    assert spans[list(spans)[-1]] == []
    found = []
    for token in kept:
        found += spans[token] if token in marks else [token]
    return found + end


@pytest.mark.parametrize(("rate", "span"), [(0.15, 3.0), (0.5, 3.0), (0.15, 8.0)])
def test_a_corrupted_row_with_its_spans_put_back_is_the_row_that_it_was(
    source, rate, span
):
    made = SpanCorruption(
        source=source, noise_density=rate, mean_span_length=span, sentinels=20
    ).open()
    marks, count = range(VOCAB, VOCAB + 20), 0
    for plain, batch, row in both(made):
        after = [
            text["token"].tolist() for text in split_documents(batch, row).values()
        ]
        before = [
            text["token"].tolist() for text in split_documents(plain, row).values()
        ]
        assert [restored(text, marks) for text in after] == before
        for old, new in zip(before, after, strict=True):
            if VOCAB in new:
                size = len(old) - (old[0] == BEGIN) - (old[-1] == END)
                spans = max(t for t in new if t >= VOCAB) - VOCAB
                taken = min(max(round(size * rate), 1), size - 1)
                assert len(new) == len(old) + 2 * spans + 1
                assert spans == min(
                    max(round(taken / span), 1), taken, size - taken, 19
                )
                count += 1
    assert count > 20


def test_only_what_was_taken_out_is_learned(source):
    for learned in ("spans", "all"):
        made = SpanCorruption(source=source, loss_on=learned).open()
        for _, batch, row in both(made):
            for text in split_documents(batch, row).values():
                tokens, weights = text["token"].tolist(), text["weight"][1:]
                if VOCAB not in tokens or learned == "all":
                    assert (weights == 1).all()
                    continue
                told = tokens.index(VOCAB, tokens.index(VOCAB) + 1) - 1
                assert (weights[:told] == 0).all() and (weights[told:] == 1).all()


def test_a_row_of_one_document_has_room_for_all_its_marks(
    open_config, make_store, make_rows
):
    rows = make_rows(make_store([5000]), BestFitPacking(), 2, 512)
    made = SpanCorruption(source=open_config(dataset=rows), reserved_tokens=0).open()
    for step in range(4):
        batch = made.batch_at(0, step)
        full = batch.segments[:, 400] > 0
        assert ((batch.tokens >= VOCAB).any(axis=1) | ~full).all()
    assert (
        512 - 3
        <= made.source_length(512)
        + 2 * made.count_spans(made.source_length(512))[1]
        + 1
        <= 512
    )


@pytest.mark.parametrize("kind", [FillInTheMiddle, SpanCorruption])
def test_parts_of_a_rewritten_batch_make_the_batch(source, kind):
    made = kind(source=source).open()
    assert isinstance(made, Dataset)
    for step in (0, 10**9):
        whole = made.batch_at(1, step)
        parts = [made.batch_at(1, step, slice(i, i + 2)) for i in (0, 2, 4)]
        for field, *pieces in zip(whole, *parts, strict=True):
            assert field.tobytes() == np.concatenate(pieces).tobytes()
    assert made.batch_at(1, 0).tokens.tobytes() != made.batch_at(2, 0).tokens.tobytes()
    assert made.info.fingerprint.keys() > source.dataset.info.fingerprint.keys()
    assert made.info.vocab == VOCAB + (3 if kind is FillInTheMiddle else 100)
    sizes = made.info.token_bytes
    assert sizes is not None and len(sizes) == made.info.vocab
    assert (
        made.info.steps is None or made.info.steps >= source.dataset.pack(96).rows / 6
    )


def test_marks_can_be_tokens_that_are_there(source):
    made = FillInTheMiddle(source=source, rate=1.0, sentinels=(0, 1, 2)).open()
    assert made.info.vocab == VOCAB
    assert (np.isin(made.batch_at(0, 0).tokens, (0, 1, 2))).sum() > 3


ECHO = RepeatTask(vocab=8, batch_size=2, sequence_length=96)


def first(made: DatasetConfig):
    return made.open().batch_at(0, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda s: FillInTheMiddle(source=s, rate=1.5),
            "FillInTheMiddle.rate is 1.5: a fraction",
        ),
        (
            lambda s: FillInTheMiddle(source=s, reserved_tokens=2),
            "FillInTheMiddle.reserved_tokens is 2: a document needs",
        ),
        (
            lambda s: FillInTheMiddle(source=s, sentinels=("<P>", 1, 2)).open(),
            "names '<P>'",
        ),
        (
            lambda s: FillInTheMiddle(source=s, sentinels=(0, 1, 999)).open(),
            "names 999, which",
        ),
        (
            lambda s: FillInTheMiddle(source=s, sentinels=(0, 1, 1)).open(),
            "names a token twice",
        ),
        (
            lambda s: first(FillInTheMiddle(source=s, reserved_tokens=96)),
            "row of 96 tokens has none",
        ),
        (
            lambda s: SpanCorruption(source=s, noise_density=0.0),
            "Corrupted has a rate of 0.0",
        ),
        (
            lambda s: SpanCorruption(source=s, sentinels=1),
            "SpanCorruption.sentinels are 1: one span",
        ),
        (
            lambda s: first(SpanCorruption(source=s, reserved_tokens=95)),
            "row of 96 tokens has none",
        ),
        (
            lambda s: first(FillInTheMiddle(source=ECHO)),
            "Echo has rows of 96 .* rows of 48",
        ),
    ],
)
def test_what_cannot_be_rewritten_is_refused(source, make, message):
    with pytest.raises(ConfigError, match=message):
        make(source)


def test_a_text_without_begin_and_end_is_rewritten_as_a_whole(
    open_config, make_store, make_rows
):
    rows = make_rows(make_store([30] * 20), BestFitPacking(), 4, LENGTH)
    rows = dataclasses.replace(rows, tokenizer=CharTokenizer(characters="ab"))
    made = FillInTheMiddle(
        source=open_config(dataset=rows), rate=1.0, sentinels=None, spm_rate=0.0
    ).open()
    for text in split_documents(made.batch_at(0, 0), 0).values():
        assert text["token"][0] == made.sentinels[0]
