"""Tests of all synthetic datasets, and of the rules of each."""

import chex
import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.dataset import Dataset
from lmx.data.stateless_random import RandomStream
from lmx.data.synthetic.markov import Grammar, Markov
from lmx.data.synthetic.task import Arithmetic, AssociativeRecall, Copy, RepeatTask

REPEAT = RepeatTask(vocab=32, batch_size=4, sequence_length=10)
LANGUAGES = [
    REPEAT,
    Copy(vocab=32, batch_size=4, sequence_length=11),
    Copy(vocab=8, noise=0.25, batch_size=4, sequence_length=64),
    AssociativeRecall(keys=5, values=9, batch_size=4, sequence_length=24),
    Arithmetic(modulus=11, batch_size=4, sequence_length=26),
    Arithmetic(modulus=11, batch_size=4, sequence_length=26, split="validation"),
    Markov(vocab=5, order=1, batch_size=4, sequence_length=16),
    Markov(vocab=3, order=3, batch_size=4, sequence_length=16),
    Grammar(vocab=8, batch_size=4, sequence_length=16),
]
all_languages = pytest.mark.parametrize("language", LANGUAGES, ids=str)


@all_languages
def test_steps_and_seeds_have_different_batches(language):
    batches = [language.batch_at(*at) for at in [(0, 0), (0, 1), (1, 0), (0, 10**9)]]
    assert len({batch.tokens.tobytes() for batch in batches}) == 4


@all_languages
def test_parts_of_a_batch_concatenate_to_the_batch(language):
    parts = [language.batch_at(7, 3, slice(first, first + 2)) for first in (0, 2)]
    joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    chex.assert_trees_all_equal(tuple(joined), tuple(language.batch_at(7, 3)))


@all_languages
def test_it_opens_as_a_dataset(language):
    assert isinstance(language.open(), Dataset)


@all_languages
def test_targets_are_the_next_tokens_and_all_tokens_occur(language):
    batches = [language.batch_at(0, step) for step in range(200)]
    tokens, targets = (np.concatenate([b[n] for b in batches]) for n in (0, 1))
    assert (tokens[:, 1:] == targets[:, :-1]).all()
    assert tokens.min() == 0 and tokens.max() == language.vocab - 1
    assert all(batch.weights.any() for batch in batches)


@all_languages
def test_rows_of_a_batch_differ(language):
    assert len(np.unique(language.batch_at(0, 0).tokens, axis=0)) == language.batch_size


def test_random_streams_have_different_numbers():
    assert len(set(map(int, RandomStream))) == len(RandomStream.__members__)


def test_only_repeated_tokens_are_targets():
    batch = REPEAT.batch_at(seed=0, step=0)
    for row in range(4):
        tokens = list(map(int, batch.tokens[row]))
        for t in range(10):
            if batch.weights[row, t]:
                assert int(batch.targets[row, t]) == tokens[t - 5]
    assert batch.weights.sum() == 4 * 5


@pytest.mark.parametrize("length", [2, 3, 10, 11])
def test_a_copy_repeats_the_tokens_before_the_separator(length):
    batch = Copy(vocab=9, batch_size=3, sequence_length=length).batch_at(0, 0)
    for tokens, targets, weights in zip(*batch[:3], strict=True):
        tokens = [*map(int, tokens), int(targets[-1])]
        separator = tokens.index(8)
        assert [t + 1 for t in np.flatnonzero(weights)] == list(
            range(separator + 1, length + 1)
        )
        assert tokens[separator + 1 :] == tokens[: length - separator]


def test_noise_replaces_tokens_at_its_rate():
    batch = Copy(vocab=5, noise=0.5, batch_size=64, sequence_length=399).batch_at(0, 0)
    tokens = np.concatenate([batch.tokens, batch.targets[:, -1:]], axis=1)
    changed = tokens[:, :199] != tokens[:, 201:]
    expected = 0.5 * 3 / 4  # one in four that are drawn anew stays as it was
    error = np.sqrt(expected * (1 - expected) / changed.size)
    assert abs(changed.mean() - expected) < 4 * error
    assert tokens[:, 201:].max() < 4


def test_a_value_is_a_target_if_its_key_occurred_before():
    batch = AssociativeRecall(
        keys=5, values=9, batch_size=8, sequence_length=25
    ).batch_at(0, 0)
    for tokens, targets, weights in zip(*batch[:3], strict=True):
        known: dict[int, int] = {}
        for t in range(0, 25, 2):
            key, value = int(tokens[t]), int(targets[t])
            assert key < 5 <= value
            assert weights[t] == (key in known)
            assert known.setdefault(key, value) == value
        assert not weights[1::2].any()


@pytest.mark.parametrize("operation", ["add", "subtract", "multiply"])
def test_equations_hold_and_splits_have_different_pairs(operation):
    compute = {"add": int.__add__, "subtract": int.__sub__, "multiply": int.__mul__}
    seen = {}
    for split in ("train", "validation"):
        tokens = Arithmetic(
            modulus=5,
            operation=operation,
            split=split,
            held_out=0.4,
            batch_size=64,
            sequence_length=39,
        ).batch_at(0, 0)
        assert np.flatnonzero(tokens.weights[0]).tolist() == list(range(2, 39, 4))
        rows = np.concatenate([tokens.tokens, tokens.targets[:, -1:]], axis=1)
        equations = rows.reshape(-1, 4).tolist()
        for a, b, sign, c in equations:
            assert sign == 5 and c == compute[operation](a, b) % 5
        seen[split] = {(a, b) for a, b, _, _ in equations}
    assert len(seen["train"]) == 15 and len(seen["validation"]) == 10
    assert not seen["train"] & seen["validation"]


REFUSALS = {
    "Markov.sequence_length is 1: it must be at least 2": lambda: Markov(
        vocab=4, order=2, batch_size=1, sequence_length=1
    ),
    "Markov.order is 9: .* are at most 65,536": lambda: Markov(
        vocab=8, order=9, batch_size=1, sequence_length=16
    ),
    "Grammar.vocab is 2: it must be at least 3": lambda: Grammar(
        vocab=2, batch_size=1, sequence_length=8
    ),
    "Arithmetic.held_out is 0.0: it must be such that": lambda: Arithmetic(
        modulus=5, held_out=0.0, split="validation", batch_size=1, sequence_length=8
    ),
    "Grammar.depth is 30, with 3 categories: more than 65,536 states": lambda: Grammar(
        vocab=8, depth=30, batch_size=1, sequence_length=8
    ).batch_at(0, 0),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_invalid_languages_are_refused(message):
    with pytest.raises(ConfigError, match=message):
        REFUSALS[message]()
