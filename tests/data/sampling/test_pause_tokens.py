"""What a source with pauses must keep."""

import chex
import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import HoldoutDocuments
from lmx.data.corpus.text import Text
from lmx.data.dataset import Dataset, DatasetConfig
from lmx.data.sampling.pause_tokens import PauseTokens
from lmx.data.synthetic.repeat import RepeatTask
from lmx.data.text_dataset import TextDataset
from lmx.data.tokenizer.base import ByteTokenizer

ECHO = RepeatTask(vocab=8, batch_size=4, sequence_length=10)
SHARES = pytest.mark.parametrize("share", [0.1, 0.4, 1.5])


@pytest.fixture(params=["documents", "echo"])
def source(request, tmp_path, write) -> DatasetConfig:
    """Short documents, some of which share a row, with padding at the end; or none."""
    if request.param == "echo":
        return ECHO
    for number in range(12):
        write(f"texts/{number}.txt", f"{number} é" * (number % 4 + 1))
    corpus = Text(path=str(tmp_path / "texts"), holdout=HoldoutDocuments(fraction=0.2))
    return TextDataset(
        corpus=corpus, tokenizer=ByteTokenizer(), batch_size=5, sequence_length=16
    )


def both(source, share):
    """Batches without and with pauses, and the token that is one."""
    plain, paused = source.open(), PauseTokens(source=source, rate=share).open()
    for step in range(plain.info.steps or 5):
        yield plain.batch_at(7, step), paused.batch_at(7, step), paused.pause_token


def test_no_pauses_leave_the_data_bit_for_bit(source):
    for plain, paused, _ in both(source, 0.0):
        chex.assert_trees_all_equal(paused, plain)
        assert [x.dtype for x in paused] == [x.dtype for x in plain]


@SHARES
def test_without_its_pauses_a_row_is_the_beginning_of_what_it_was(source, share):
    for plain, paused, pause in both(source, share):
        for row in range(len(plain.tokens)):
            kept = paused.tokens[row] != pause
            for name in ("tokens", "segments"):
                got = getattr(paused, name)[row][kept]
                np.testing.assert_array_equal(
                    got, getattr(plain, name)[row][: len(got)]
                )
            asked = paused.targets[row] != pause
            for name in ("targets", "weights"):
                got = getattr(paused, name)[row][asked]
                np.testing.assert_array_equal(
                    got, getattr(plain, name)[row][: len(got)]
                )


@SHARES
def test_a_pause_is_not_learned_and_its_document_goes_on_in_it(source, share):
    """By a loop over tokens, each of which follows from the one before it."""
    for plain, paused, pause in both(source, share):
        assert [x.dtype for x in paused] == [x.dtype for x in plain]
        for row, t in np.ndindex(*paused.tokens.shape):
            if t + 1 < paused.tokens.shape[1]:
                comes = paused.tokens[row, t + 1] == pause
                assert (paused.targets[row, t] == pause) == comes
            if paused.targets[row, t] == pause:
                assert paused.weights[row, t] == 0.0
            segment, same = paused.segments[row, t], False
            if t:
                same = paused.segments[row, t - 1] == segment
                assert same or paused.tokens[row, t] != pause
            want = paused.positions[row, t - 1] + 1 if same and segment else 0
            assert paused.positions[row, t] == want


@SHARES
def test_every_row_has_its_share_of_pauses_and_begins_with_a_token(share):
    wide = RepeatTask(vocab=8, batch_size=64, sequence_length=100)
    for _, paused, pause in both(wide, share):
        pauses = paused.tokens == pause
        assert not pauses[:, 0].any()
        assert abs(pauses.mean() - share / (1 + share)) < 0.02
        assert (pauses.mean(axis=0)[1:] > 0).all()
        assert (pauses.sum(axis=1) <= round(share * 100)).all()


def test_parts_of_a_batch_make_the_batch():
    paused = PauseTokens(source=ECHO, rate=0.4).open()
    parts = [paused.batch_at(7, 3, slice(first, first + 2)) for first in (0, 2)]
    joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    chex.assert_trees_all_equal(tuple(joined), tuple(paused.batch_at(7, 3)))


def test_rows_steps_and_seeds_pause_in_places_of_their_own():
    paused = PauseTokens(
        source=RepeatTask(vocab=8, batch_size=4, sequence_length=40), rate=0.5
    ).open()
    batches = [paused.batch_at(*at).tokens for at in ((0, 0), (0, 1), (1, 0))]
    rows = [row for batch in batches for row in batch == paused.pause_token]
    assert len({row.tobytes() for row in rows}) == 12


def test_a_pause_is_one_more_token_and_no_text(source):
    plain, paused = source.open(), PauseTokens(source=source).open()
    assert isinstance(paused, Dataset)
    assert (
        paused.pause_token == plain.info.vocab
        and paused.info.vocab == plain.info.vocab + 1
    )
    assert paused.info.steps == plain.info.steps
    assert paused.info.fingerprint != plain.info.fingerprint
    sizes = [paused.info.token_bytes, plain.info.token_bytes]
    wide, narrow = (None if x is None else x.tolist() for x in sizes)
    assert wide == (narrow and [*narrow, 0])


@pytest.mark.parametrize("share", [-0.1, float("inf"), float("nan")])
def test_a_share_that_cannot_be_is_refused(share):
    with pytest.raises(
        ConfigError, match="PauseTokens.rate is .*: it must be 0 or more"
    ):
        PauseTokens(source=ECHO, rate=share)
