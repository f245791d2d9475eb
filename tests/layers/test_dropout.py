"""Dropout is a function of one key per row."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.layers.dropout import dropout

KEYS = jax.random.split(jax.random.key(0), 6)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (6, 50, 40))


def test_without_keys_or_rate_the_input_is_returned(x):
    assert dropout(x, 0.5, None, 0) is x
    assert dropout(x, 0.0, KEYS, 0) is x


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_the_rate_and_preserves_the_mean(rate):
    y = dropout(jnp.ones((6, 50, 40)), rate, KEYS, 0)
    assert (y == 0).mean() == pytest.approx(rate, abs=0.02)
    assert y.mean() == pytest.approx(1.0, abs=0.06)
    np.testing.assert_allclose(y[y > 0], 1 / (1 - rate), rtol=1e-6)


def test_splitting_the_batch_does_not_change_dropout(x):
    whole = dropout(x, 0.5, KEYS, 3)
    for rows in (slice(0, 2), slice(2, 6), slice(1, 6, 2)):
        np.testing.assert_array_equal(dropout(x[rows], 0.5, KEYS[rows], 3), whole[rows])


def test_rows_and_sites_have_independent_dropout(x):
    ones = jnp.ones_like(x)
    masks = [np.asarray(dropout(ones, 0.5, KEYS, use)) > 0 for use in (0, 1, 2**31)]
    rows = np.concatenate(masks).reshape(18, -1)
    agree = (rows[:, None] == rows[None]).mean(axis=-1)
    assert np.abs(agree - np.eye(18) / 2 - 0.5).max() < 0.06


def test_the_dtype_does_not_change(x):
    assert dropout(x.astype("bfloat16"), 0.5, KEYS, 0).dtype == jnp.bfloat16


def test_the_second_call_does_not_recompile(x):
    call = jax.jit(
        chex.assert_max_traces(lambda x, keys: dropout(x, 0.5, keys, 0), n=1)
    )
    for seed in range(2):
        call(x, jax.random.split(jax.random.key(seed), 6))
