"""What a made language must keep."""

import chex
import numpy as np
import pytest

from lmx.config.names import ConfigError
from lmx.data.batches import Rows
from lmx.data.synthetic import Echo

ECHO = Echo(vocab=32, batch=4, length=10)


def test_only_what_was_said_before_is_learned():
    batch = ECHO.batch_at(seed=0, step=0)
    for row in range(4):
        said = list(map(int, batch.tokens[row]))
        for t in range(10):
            if batch.weights[row, t]:
                assert int(batch.targets[row, t]) == said[t - 5]
    assert batch.weights.sum() == 4 * 5


def test_each_step_and_seed_has_its_own_batch():
    batches = [ECHO.batch_at(*at).tokens for at in [(0, 0), (0, 1), (1, 0)]]
    assert len({tokens.tobytes() for tokens in batches}) == 3


def test_parts_of_a_batch_make_the_batch():
    parts = [ECHO.batch_at(7, 3, slice(first, first + 2)) for first in (0, 2)]
    joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    chex.assert_trees_all_equal(tuple(joined), tuple(ECHO.batch_at(7, 3)))


def test_it_opens_as_what_every_source_opens_as():
    assert isinstance(ECHO.open(), Rows)


def test_a_language_without_words_is_refused():
    with pytest.raises(ConfigError, match=r"Echo.vocab is 0: at least 1"):
        Echo(vocab=0, batch=1, length=1)
