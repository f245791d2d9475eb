"""Texts of any length, against a plain loop over their tokens."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import lmx
from lmx.config.registry import ConfigError
from lmx.data.sampling.packing import fill_batch, slice_stream
from lmx.data.store.store import Store
from lmx.data.tokenizer.base import ByteTokenizer, CharTokenizer
from lmx.evals.documents import Scorer, SlidingWindow, find_training_length
from lmx.models.trained_model import TrainedModel
from tests.hash_init import HASHED

TINY = Path(__file__).parents[1] / "train" / "tiny.gin"
TEXT = "né bottles of beer on the wall, and no more bottles of beer"
SIZES = [
    (2, 8, 8), (9, 8, 8), (10, 8, 8), (10, 8, 3), (70, 8, 1), (70, 8, 5), (17, 16, 4),
]  # fmt: skip


def trained(codec, *words):
    """An untrained model as a run."""
    vocab = [f"Decoder.vocab={codec.vocab}", f"RepeatTask.vocab={codec.vocab}"]
    config = lmx.load_experiment(TINY, [HASHED, *vocab, *words])
    graph, params = nnx.split(config.build().model(nnx.Rngs(0)))
    return TrainedModel(config, 0, graph, params, codec)


@pytest.fixture(scope="module")
def run():
    return trained(ByteTokenizer())


def batches(windows, stream):
    count = -(-windows.count_rows(len(stream)) // windows.batch_size)
    return [windows.batch_at(stream, step) for step in range(count)]


@pytest.mark.parametrize(("size", "length", "stride"), SIZES)
def test_every_token_but_the_first_is_scored_once_with_enough_context(
    size, length, stride
):
    stream = np.arange(100, 100 + size, dtype=np.int32)
    scored = {}
    for batch in batches(
        SlidingWindow(length=length, stride=stride, batch_size=3), stream
    ):
        for row, at in np.argwhere(batch.weights):
            target = int(batch.targets[row, at])
            assert target not in scored
            scored[target] = before = batch.tokens[row, : at + 1].tolist()
            assert before == list(range(target - len(before), target))
            assert batch.segments[row, : at + 1].all()
            assert batch.positions[row, : at + 1].tolist() == list(range(at + 1))
    assert sorted(scored) == stream[1:].tolist()
    for target, before in scored.items():
        assert len(before) >= min(target - 100, length - stride + 1)


@pytest.mark.parametrize("size", [2, 8, 9, 40])
def test_adjacent_windows_are_the_rows_of_training(size):
    stream = np.arange(1, size + 1, dtype=np.int32)
    store = Store(
        parts=[stream.astype(np.uint16)], part_offsets=np.array([0, size]), bytes=0,
        starts=np.array([0, size]), fingerprint={}, sources={},
    )  # fmt: skip
    windows = SlidingWindow(length=8, stride=8, batch_size=2)
    for step, found in enumerate(batches(windows, stream)):
        offsets = (2 * step + np.arange(2)) * 8
        expected = fill_batch(store, slice_stream(store, offsets, 8), (2, 8))
        for part, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(part, other)


def score_by_hand(run, stream, length, stride):
    """Nats of all tokens, each from its own pass over its context."""
    forward = jax.jit(lambda params, row: nnx.merge(run.graph, params)(row))
    nats = 0.0
    for at in range(1, len(stream)):
        window = max(0, -(-(at - length) // stride))
        before = stream[window * stride : at]
        row = np.zeros((1, length), np.int32)
        row[0, : len(before)] = before
        logits = np.asarray(forward(run.params, row)[0, len(before) - 1], np.float64)
        nats += np.log(np.exp(logits).sum()) - logits[stream[at]]
    return nats


@pytest.mark.parametrize("stride", [16, 5])
def test_nats_equal_those_of_one_pass_for_each_token(run, stride):
    found = Scorer(run, SlidingWindow(length=16, stride=stride, batch_size=3))(
        TEXT, "text"
    )
    stream = [256, *TEXT.encode(), 257]
    assert found[1:].tolist() == [len(stream) - 1, len(TEXT.encode())]
    expected = score_by_hand(run, stream, 16, stride)
    np.testing.assert_allclose(found[0], expected, 1e-5)


def test_stride_and_batch_size_do_not_affect_a_text_of_one_window(run):
    scores = [
        Scorer(run, SlidingWindow(length=64, stride=stride, batch_size=batch))(
            TEXT, "text"
        )
        for stride, batch in ((64, 1), (1, 1), (32, 4))
    ]
    for score in scores[1:]:
        np.testing.assert_allclose(score, scores[0], 1e-6)


def test_texts_of_all_lengths_share_one_program(run):
    score = Scorer(run, SlidingWindow(length=8, stride=4))
    for text in ("a", TEXT, TEXT * 3):
        score(text, "text")
    compiled = vars(score)["score"]
    assert compiled._cache_size() == 1


def test_without_a_bos_token_the_first_token_is_not_scored():
    codec = CharTokenizer(characters="abé")
    score = Scorer(trained(codec), SlidingWindow(length=8, stride=8))
    assert score("éaé", "text")[1:].tolist() == [2, 3]


def test_the_default_window_is_the_sequence_length_of_training(run):
    assert find_training_length(run) == 16
    assert (
        find_training_length(trained(ByteTokenizer(), "RepeatTask.sequence_length=8"))
        == 8
    )
    stored = [
        "Experiment.data=@PauseTokens()",
        "PauseTokens.source=@TokenStoreDataset()",
    ]
    stored += [
        "TokenStoreDataset.path=nowhere",
        "TokenStoreDataset.batch_size=8",
        "TokenStoreDataset.sequence_length=@PiecewiseConstant()",
    ]
    stored += [
        "PiecewiseConstant.values=(8, 32, 16)",
        "PiecewiseConstant.boundaries=(3, 5)",
    ]
    config = lmx.load_experiment(TINY, ["Experiment.data=@RepeatTask()", *stored])
    assert find_training_length(run._replace(config=config)) == 32


def test_a_text_with_tokens_beyond_the_vocabulary_is_refused():
    """Its logits do not exist, and would be read as NaN."""
    small = trained(ByteTokenizer(), "Decoder.vocab=200", "RepeatTask.vocab=200")
    tokenizer = CharTokenizer(characters="".join(map(chr, range(300))))
    small = small._replace(tokenizer=tokenizer)
    score = Scorer(small, SlidingWindow(length=8, stride=8))
    with pytest.raises(ConfigError, match="long.txt has token 250 and the model knows"):
        score("ab" + chr(250), "long.txt")
    assert np.isfinite(score("abcd", "short.txt")).all()


def test_invalid_windows_texts_and_runs_are_refused(run):
    for wrong, message in {
        (8, 9): "windows of 8 tokens, each 9 after the last, leave tokens out",
        (0, 1): "SlidingWindow.length is 0: it must be at least 1",
        (8, 0): "SlidingWindow.stride is 0: it must be at least 1",
    }.items():
        with pytest.raises(ConfigError, match=message):
            SlidingWindow(length=wrong[0], stride=wrong[1])
    eight = SlidingWindow(length=8, stride=8)
    with pytest.raises(ConfigError, match="empty.txt has 0 characters"):
        Scorer(run, eight)("", "empty.txt")
    characters = trained(CharTokenizer(characters="ab"))
    with pytest.raises(ConfigError, match="one.txt has 1 characters: it needs"):
        Scorer(characters, eight)("a", "one.txt")
    words = ["Decoder.position=@LearnedPosition", "LearnedPosition.max_length=16"]
    limited = trained(ByteTokenizer(), *words)
    with pytest.raises(ConfigError, match="windows of 17 tokens exceed the maximum"):
        Scorer(limited, SlidingWindow(length=17, stride=8))
    with pytest.raises(ConfigError, match="it has no tokenizer"):
        Scorer(run._replace(tokenizer=None), eight)
