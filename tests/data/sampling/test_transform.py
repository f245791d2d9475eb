"""Tests of fill-in-the-middle and span corruption, which can be undone."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.dataset import Dataset, DatasetConfig
from lmx.data.sampling.fim import FillInTheMiddle, SpanCorruption
from lmx.data.sampling.packing import BestFitPacking, ConcatAndSplit
from lmx.data.sampling.transform import split_documents
from lmx.data.synthetic.task import RepeatTask
from lmx.data.tokenizer.base import CharTokenizer

BOS, EOS, VOCAB = 256, 257, 258
LENGTH = 96


@pytest.fixture(params=[BestFitPacking(), ConcatAndSplit()], ids=str)
def source(request, open_config, make_store, make_dataset) -> DatasetConfig:
    """Documents of bytes between BOS and EOS, some longer than a row."""
    random = np.random.default_rng(0)
    store = make_store(random.integers(2, 60, 80).tolist() + [150, 400])
    tokens = random.integers(0, 256, store.size).astype(np.uint16)
    tokens[store.starts[:-1]], tokens[store.starts[1:] - 1] = BOS, EOS
    store = dataclasses.replace(
        store, parts=[tokens], part_offsets=np.array([0, len(tokens)])
    )
    return open_config(dataset=make_dataset(store, request.param, 6, LENGTH))


def read_both(transformed):
    """The source's batch and the transformed batch, for each row."""
    for step in range(12):
        batch = transformed.batch_at(4, step)
        wanted = transformed.info.schedule.request(4, step, slice(None))
        inner = transformed.config.source_length(LENGTH)
        plain = transformed.source.read(wanted._replace(sequence_length=inner))
        assert batch.tokens.shape == (6, LENGTH)
        assert [x.dtype for x in batch] == [x.dtype for x in plain]
        for row in range(6):
            yield plain, batch, row


def undo_fim(tokens: list[int], prefix, suffix, middle) -> list[int]:
    """The original of a document with its middle moved to the end."""
    if middle not in tokens:
        return tokens
    at = tokens.index(middle)
    head, tail = tokens[:at], tokens[at + 1 :]
    first, last = head.index(prefix), head.index(suffix)
    assert first < 2 and head.count(prefix) == head.count(suffix) == 1
    end = [tail.pop()] if tail and tail[-1] == EOS else []
    if last == first + 1:  # SPM order
        return head[:first] + tail + head[last + 1 :] + end
    return head[:first] + head[first + 1 : last] + tail + head[last + 1 :] + end


@pytest.mark.parametrize("spm", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("room", [3, 48])
def test_fim_can_be_undone(source, spm, room):
    transformed = FillInTheMiddle(
        source=source, rate=0.7, spm_rate=spm, reserved_tokens=room
    ).open()
    sentinels, changed = range(VOCAB, VOCAB + 3), 0
    for plain, batch, row in read_both(transformed):
        after = [
            text["token"].tolist() for text in split_documents(batch, row).values()
        ]
        before = [
            text["token"].tolist() for text in split_documents(plain, row).values()
        ]
        assert [undo_fim(text, *sentinels) for text in after] == before
        here = sum(VOCAB in text for text in after)
        changed += here
        assert 3 * here <= room
    assert changed > 20


def test_fim_has_its_rates(open_config, make_store, make_dataset):
    rows = make_dataset(make_store([20] * 4000), BestFitPacking(), 100, 100)
    transformed = FillInTheMiddle(
        source=open_config(dataset=rows), rate=0.5, spm_rate=0.25, sentinels=None
    ).open()
    every = [
        text["token"].tolist()
        for batch in (transformed.batch_at(0, step) for step in range(5))
        for row in range(100)
        for text in split_documents(batch, row).values()
    ]
    changed = [text for text in every if VOCAB in text]
    reverse = [t for t in changed if t.index(VOCAB + 1) == t.index(VOCAB) + 1]
    assert abs(len(changed) / len(every) - 0.5) < 0.05
    # An empty prefix looks the same: one of two cuts in 21 places is at the start.
    empty = 1 - (20 / 21) ** 2
    assert abs(len(reverse) / len(changed) - (0.25 + 0.75 * empty)) < 0.06


@pytest.mark.parametrize("loss_on", ["all", "middle"])
@pytest.mark.parametrize("spm", [0.0, 1.0])
def test_the_loss_of_a_fim_document_is_on_what_loss_on_says(source, loss_on, spm):
    transformed = FillInTheMiddle(
        source=source, rate=1.0, spm_rate=spm, loss_on=loss_on
    ).open()
    for _, batch, row in read_both(transformed):
        for text in split_documents(batch, row).values():
            tokens, weights = text["token"].tolist(), text["weight"][1:]
            if loss_on == "all" or VOCAB not in tokens:
                assert (weights == 1).all()
                continue
            if VOCAB + 2 not in tokens:  # before an empty middle
                assert not weights.any()
                continue
            middle = tokens.index(VOCAB + 2)
            assert (weights[:middle] == 0).all()
            if spm:  # the prefix is in between
                assert (np.diff(weights[middle:]) >= 0).all()
            else:
                assert (weights[middle:] == 1).all()


def undo_corruption(tokens: list[int], sentinels: range) -> list[int]:
    """The original of a document with corrupted spans."""
    first = sentinels[0]
    if first not in tokens:
        return tokens
    second = tokens.index(first, tokens.index(first) + 1)
    kept, changed = tokens[:second], tokens[second:]
    end = [changed.pop()] if changed[-1] == EOS else []
    spans: dict[int, list[int]] = {}
    for token in changed:
        if token in sentinels:
            span = spans.setdefault(token, [])
        else:
            span.append(token)
    assert [t for t in kept if t in sentinels] == list(spans)[:-1]
    assert list(spans) == list(sentinels[: len(spans)])
    assert spans[list(spans)[-1]] == []
    found = []
    for token in kept:
        found += spans[token] if token in sentinels else [token]
    return found + end


@pytest.mark.parametrize(("rate", "span"), [(0.15, 3.0), (0.5, 3.0), (0.15, 8.0)])
def test_span_corruption_can_be_undone(source, rate, span):
    transformed = SpanCorruption(
        source=source, noise_density=rate, mean_span_length=span, sentinels=20
    ).open()
    sentinels, count = range(VOCAB, VOCAB + 20), 0
    for plain, batch, row in read_both(transformed):
        after = [
            text["token"].tolist() for text in split_documents(batch, row).values()
        ]
        before = [
            text["token"].tolist() for text in split_documents(plain, row).values()
        ]
        assert [undo_corruption(text, sentinels) for text in after] == before
        for old, new in zip(before, after, strict=True):
            if VOCAB in new:
                size = len(old) - (old[0] == BOS) - (old[-1] == EOS)
                spans = max(t for t in new if t >= VOCAB) - VOCAB
                taken = min(max(round(size * rate), 1), size - 1)
                assert len(new) == len(old) + 2 * spans + 1
                assert spans == min(
                    max(round(taken / span), 1), taken, size - taken, 19
                )
                count += 1
    assert count > 20


def test_the_loss_of_a_corrupted_document_is_on_what_loss_on_says(source):
    for loss_on in ("spans", "all"):
        transformed = SpanCorruption(source=source, loss_on=loss_on).open()
        for _, batch, row in read_both(transformed):
            for text in split_documents(batch, row).values():
                tokens, weights = text["token"].tolist(), text["weight"][1:]
                if VOCAB not in tokens or loss_on == "all":
                    assert (weights == 1).all()
                    continue
                changed = tokens.index(VOCAB, tokens.index(VOCAB) + 1) - 1
                assert (weights[:changed] == 0).all() and (weights[changed:] == 1).all()


def test_a_document_that_fills_a_row_has_room_for_its_sentinels(
    open_config, make_store, make_dataset
):
    rows = make_dataset(make_store([5000]), BestFitPacking(), 2, 512)
    transformed = SpanCorruption(
        source=open_config(dataset=rows), reserved_tokens=0
    ).open()
    for step in range(4):
        batch = transformed.batch_at(0, step)
        full = batch.segments[:, 400] > 0
        assert ((batch.tokens >= VOCAB).any(axis=1) | ~full).all()
    config: Any = transformed.config
    size = config.source_length(512)
    sentinels = 2 * config.count_spans(size)[1] + 1
    assert 512 - 3 <= size + sentinels <= 512


@pytest.mark.parametrize("kind", [FillInTheMiddle, SpanCorruption])
def test_parts_of_a_transformed_batch_concatenate_to_the_batch(source, kind):
    transformed = kind(source=source).open()
    assert isinstance(transformed, Dataset)
    for step in (0, 10**9):
        whole = transformed.batch_at(1, step)
        parts = [transformed.batch_at(1, step, slice(i, i + 2)) for i in (0, 2, 4)]
        for field, *pieces in zip(whole, *parts, strict=True):
            assert field.tobytes() == np.concatenate(pieces).tobytes()
    assert (
        transformed.batch_at(1, 0).tokens.tobytes()
        != transformed.batch_at(2, 0).tokens.tobytes()
    )
    assert transformed.info.fingerprint.keys() > source.dataset.info.fingerprint.keys()
    assert transformed.info.vocab == VOCAB + (3 if kind is FillInTheMiddle else 100)
    sizes = transformed.info.token_bytes
    assert sizes is not None and len(sizes) == transformed.info.vocab
    assert (
        transformed.info.steps is None
        or transformed.info.steps >= source.dataset.pack(96).rows / 6
    )


def test_sentinels_can_be_existing_tokens(source):
    transformed = FillInTheMiddle(source=source, rate=1.0, sentinels=(0, 1, 2)).open()
    assert transformed.info.vocab == VOCAB
    assert (np.isin(transformed.batch_at(0, 0).tokens, (0, 1, 2))).sum() > 3


TASK = RepeatTask(vocab=8, batch_size=2, sequence_length=96)


def first(transformed: DatasetConfig):
    return transformed.open().batch_at(0, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
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
            "row of 96 tokens has no room",
        ),
        (
            lambda s: SpanCorruption(source=s, sentinels=1),
            "SpanCorruption.sentinels is 1: it must",
        ),
        (
            lambda s: first(SpanCorruption(source=s, reserved_tokens=95)),
            "row of 96 tokens has no room",
        ),
        (
            lambda s: first(FillInTheMiddle(source=TASK)),
            "RepeatTask has rows of 96 .* rows of 48",
        ),
    ],
)
def test_invalid_transforms_are_refused(source, make, message):
    with pytest.raises(ConfigError, match=message):
        make(source)


def test_a_document_without_bos_and_eos_is_transformed_in_full(
    open_config, make_store, make_dataset
):
    rows = make_dataset(make_store([30] * 20), BestFitPacking(), 4, LENGTH)
    rows = dataclasses.replace(rows, tokenizer=CharTokenizer(characters="ab"))
    transformed = FillInTheMiddle(
        source=open_config(dataset=rows), rate=1.0, sentinels=None, spm_rate=0.0
    ).open()
    for text in split_documents(transformed.batch_at(0, 0), 0).values():
        assert text["token"][0] == transformed.sentinels[0]
