"""Attention mask and positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.layers import mask

SEGMENTS = jnp.array([[0, 0, 1, 1, 1, 2], [1, 2, 2, 3, 3, 0]])


TOKENS = mask.describe_tokens(mask.positions_from_segments(SEGMENTS), SEGMENTS)


@pytest.mark.parametrize("first", [0, 2, 5])
@pytest.mark.parametrize("window", [None, 1, 2, 9])
def test_agrees_with_one_pair_at_a_time(first, window):
    segments, keys = np.asarray(SEGMENTS[:, first:]), np.asarray(SEGMENTS)
    want = np.zeros((2, 6 - first, 6), bool)
    for b, t, s in np.ndindex(want.shape):
        near = window is None or t + first - s < window
        want[b, t, s] = segments[b, t] == keys[b, s] and s <= t + first and near
    query = jax.tree.map(lambda x: x[:, first:], TOKENS)
    np.testing.assert_array_equal(mask.make_attention_mask(query, TOKENS, window), want)


def test_no_token_sees_padding():
    seen = mask.make_attention_mask(TOKENS, TOKENS)
    unpadded = SEGMENTS > 0
    assert not (seen & unpadded[:, :, None] & ~unpadded[:, None, :]).any()


def test_positions_restart_with_each_document():
    want = [[0, 1, 0, 1, 2, 0], [0, 0, 1, 0, 1, 0]]
    np.testing.assert_array_equal(jax.jit(mask.positions_from_segments)(SEGMENTS), want)
