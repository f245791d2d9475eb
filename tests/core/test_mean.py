"""Means of parts add up to the mean of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.mean import Mean


def test_added_or_concatenated_parts_have_the_mean_of_the_whole():
    values, weights = np.random.default_rng(0).random((2, 3, 5))
    parts = [
        Mean(jnp.sum(v * w), jnp.sum(w)) for v, w in zip(values, weights, strict=True)
    ]
    want = np.average(values, weights=weights)
    added = jax.tree.map(lambda *x: sum(x), *parts)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *parts)
    assert added.value == pytest.approx(want)
    assert stacked.value == pytest.approx(want)


def test_the_mean_of_parts_is_not_the_mean_of_their_means():
    few, many = (Mean(jnp.array(3.0), jnp.array(w)) for w in (1.0, 5.0))
    assert jax.tree.map(jnp.add, few, many).value == pytest.approx(1.0)
    assert (few.value + many.value) / 2 == pytest.approx(1.8)


def test_the_mean_of_weight_zero_is_zero():
    zero = jnp.zeros(())
    assert Mean(zero, zero).value == 0.0
    assert jnp.isfinite(jax.grad(lambda total: Mean(total, zero).value)(zero))
