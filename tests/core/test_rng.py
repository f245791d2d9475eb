"""Random keys depend on seed, step, purpose and row only."""

import itertools

import chex
import jax
import numpy as np

from lmx.core import rng


def bits(keys) -> np.ndarray:
    return np.asarray(jax.random.key_data(keys))


def test_the_key_of_a_row_does_not_depend_on_the_number_of_rows():
    whole = bits(rng.fold(3, 5, "dropout", 8))
    for rows in (1, 3, 8):
        np.testing.assert_array_equal(
            bits(rng.fold(3, 5, "dropout", rows)), whole[:rows]
        )


def test_keys_differ_by_seed_step_purpose_and_row():
    uses = itertools.product((0, 1), (0, 1, 7), ("dropout", "sample"))
    keys = [tuple(row) for use in uses for row in bits(rng.fold(*use, 4))]
    assert len(set(keys)) == 2 * 3 * 2 * 4


def test_keys_of_purposes_differ_from_each_other_and_between_seeds():
    keys = {
        tuple(bits(rng.key(seed, purpose)))
        for seed in range(3)
        for purpose in ("params", "dropout", "sample")
    }
    assert len(keys) == 9


def test_a_traced_step_has_the_same_keys_and_compiles_once():
    fold = jax.jit(
        chex.assert_max_traces(
            lambda step: jax.random.key_data(rng.fold(0, step, "dropout", 2)), n=1
        )
    )
    for step in (0, 1, 2**31 - 1):
        np.testing.assert_array_equal(fold(step), bits(rng.fold(0, step, "dropout", 2)))
