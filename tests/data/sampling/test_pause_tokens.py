"""Tests of the pause-token transform."""

import chex
import numpy as np
import pytest

from lmx.data.corpus.corpus import HoldoutDocuments
from lmx.data.corpus.text import Text
from lmx.data.dataset import Dataset, DatasetConfig
from lmx.data.sampling.transform import PauseTokens
from lmx.data.synthetic.task import RepeatTask
from lmx.data.text_dataset import TextDataset
from lmx.data.tokenizer.base import ByteTokenizer

TASK = RepeatTask(vocab=8, batch_size=4, sequence_length=10)
RATES = pytest.mark.parametrize("rate", [0.1, 0.4, 1.5])


@pytest.fixture(params=["documents", "synthetic"])
def source(request, tmp_path, write) -> DatasetConfig:
    """Short documents, some of which share a row, with padding at the end; or none."""
    if request.param == "synthetic":
        return TASK
    for number in range(12):
        write(f"texts/{number}.txt", f"{number} é" * (number % 4 + 1))
    corpus = Text(path=str(tmp_path / "texts"), holdout=HoldoutDocuments(fraction=0.2))
    return TextDataset(
        corpus=corpus, tokenizer=ByteTokenizer(), batch_size=5, sequence_length=16
    )


def read_both(source, rate):
    """Batches without and with pauses, and the pause token."""
    plain, paused = source.open(), PauseTokens(source=source, rate=rate).open()
    for step in range(plain.info.steps or 5):
        yield plain.batch_at(7, step), paused.batch_at(7, step), paused.pause_token


def test_a_rate_of_zero_leaves_the_data_unchanged_to_the_bit(source):
    for plain, paused, _ in read_both(source, 0.0):
        chex.assert_trees_all_equal(paused, plain)
        assert [x.dtype for x in paused] == [x.dtype for x in plain]


@RATES
def test_without_its_pauses_a_row_is_a_prefix_of_the_original_row(source, rate):
    for plain, paused, pause in read_both(source, rate):
        for row in range(len(plain.tokens)):
            is_token = paused.tokens[row] != pause
            has_target = paused.targets[row] != pause
            for name, mask in {
                "tokens": is_token,
                "segments": is_token,
                "targets": has_target,
                "weights": has_target,
            }.items():
                rest = getattr(paused, name)[row][mask]
                original = getattr(plain, name)[row][: len(rest)]
                np.testing.assert_array_equal(rest, original)


@RATES
def test_a_pause_has_no_loss_and_continues_its_document(source, rate):
    """By a loop over tokens, each of which follows from the one before it."""
    for plain, paused, pause in read_both(source, rate):
        assert [x.dtype for x in paused] == [x.dtype for x in plain]
        for row, t in np.ndindex(*paused.tokens.shape):
            if t + 1 < paused.tokens.shape[1]:
                pause_follows = paused.tokens[row, t + 1] == pause
                assert (paused.targets[row, t] == pause) == pause_follows
            if paused.targets[row, t] == pause:
                assert paused.weights[row, t] == 0.0
            segment, same = paused.segments[row, t], False
            if t:
                same = paused.segments[row, t - 1] == segment
                assert same or paused.tokens[row, t] != pause
            position = paused.positions[row, t - 1] + 1 if same and segment else 0
            assert paused.positions[row, t] == position


@RATES
def test_every_row_has_pauses_at_the_rate_and_starts_with_a_token(rate):
    wide = RepeatTask(vocab=8, batch_size=64, sequence_length=100)
    for _, paused, pause in read_both(wide, rate):
        pauses = paused.tokens == pause
        assert not pauses[:, 0].any()
        assert abs(pauses.mean() - rate / (1 + rate)) < 0.02
        assert (pauses.mean(axis=0)[1:] > 0).all()
        assert (pauses.sum(axis=1) <= round(rate * 100)).all()


def test_parts_of_a_batch_concatenate_to_the_batch():
    paused = PauseTokens(source=TASK, rate=0.4).open()
    parts = [paused.batch_at(7, 3, slice(first, first + 2)) for first in (0, 2)]
    batch = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    chex.assert_trees_all_equal(tuple(batch), tuple(paused.batch_at(7, 3)))


def test_rows_steps_and_seeds_have_different_pauses():
    wide = RepeatTask(vocab=8, batch_size=4, sequence_length=40)
    paused = PauseTokens(source=wide, rate=0.5).open()
    batches = [paused.batch_at(*at).tokens for at in ((0, 0), (0, 1), (1, 0))]
    rows = [row for batch in batches for row in batch == paused.pause_token]
    assert len({row.tobytes() for row in rows}) == 12


def test_the_pause_token_is_added_to_the_vocabulary_and_has_no_text(source):
    plain, paused = source.open(), PauseTokens(source=source).open()
    assert isinstance(paused, Dataset)
    assert paused.pause_token == plain.info.vocab
    assert paused.info.vocab == plain.info.vocab + 1
    assert paused.info.steps == plain.info.steps
    assert paused.info.fingerprint != plain.info.fingerprint
    sizes = [paused.info.token_bytes, plain.info.token_bytes]
    wide, narrow = (None if x is None else x.tolist() for x in sizes)
    assert wide == (narrow and [*narrow, 0])
