"""Tests of stateless random numbers and permutations."""

import numpy as np
import pytest

from lmx.data.stateless_random import hash_u64, permute, randint


@pytest.mark.parametrize("size", [*range(1, 70), 100, 257, 1000, 4097, 65536])
def test_a_permutation_has_every_index_once(size):
    moved = permute(np.arange(size), size, hash_u64(3, np.full(size, 1)))
    assert sorted(moved) == list(range(size))


def test_keys_have_different_permutations():
    orders = {permute(np.arange(50), 50, hash_u64(k, np.zeros(50))).tobytes()
              for k in range(100)}  # fmt: skip
    assert len(orders) == 100


@pytest.mark.parametrize("size", [2, 3, 7, 20])
def test_permuted_indices_are_uniform(size):
    keys = hash_u64(11, np.arange(20_000))
    for first in {0, size - 1}:
        counts = np.bincount(permute(np.full(20_000, first), size, keys))
        spread = ((counts - 20_000 / size) ** 2).sum() / (20_000 / size)
        assert spread < size - 1 + 5 * np.sqrt(2 * size)  # chi-squared, five sigmas


def test_neighbors_do_not_stay_neighbors():
    moved = permute(np.arange(10_000), 10_000, hash_u64(0, np.zeros(10_000)))
    assert (np.abs(np.diff(moved)) == 1).sum() < 15  # 2 are to be expected


def test_an_index_does_not_depend_on_the_others():
    key = hash_u64(5, np.zeros(31))
    together = permute(np.arange(31), 31, key)
    alone = [permute(np.array([i]), 31, key[:1])[0] for i in range(31)]
    assert list(together) == alone


def test_integers_below_a_bound_are_uniform():
    counts = np.bincount(randint(7, 1, np.arange(70_000)), minlength=7)
    assert len(counts) == 7
    assert abs(counts - 10_000).max() < 500


def test_a_bound_that_does_not_divide_2_to_the_64_has_no_bias():
    """A plain remainder would draw the first third twice as often."""
    drawn = randint(3 * 2**61, 1, np.arange(9_000))
    counts = np.bincount(drawn // 2**61, minlength=3)
    assert abs(counts - 3_000).max() < 250


def scrambled(x: int) -> int:
    """The finalizer of splitmix64, on Python integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


@pytest.mark.parametrize("words", [(0,), (0, 1, 2), (-1, 2**63), (7, 10**15)], ids=str)
def test_a_hash_is_splitmix64_with_one_word_per_round(words):
    state = 0
    for word in words:
        state = scrambled((state + 0x9E3779B97F4A7C15) % 2**64 ^ word % 2**64)
    assert hash_u64(*words).tolist() == [state]


def test_the_numbers_never_change():
    assert hash_u64(0, 1, 2).tolist() == [17650578182555822980]
