"""Who may attend to whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.layers import mask

SEGMENTS = jnp.array([[0, 0, 1, 1, 1, 2], [1, 2, 2, 3, 3, 0]])


@pytest.mark.parametrize("first", [0, 2, 5])
def test_agrees_with_one_pair_at_a_time(first):
    segments, keys = np.asarray(SEGMENTS[:, first:]), np.asarray(SEGMENTS)
    want = np.zeros((2, 6 - first, 6), bool)
    for b, t, s in np.ndindex(want.shape):
        want[b, t, s] = segments[b, t] == keys[b, s] and s <= t + first
    got = mask.causal(jnp.asarray(segments), SEGMENTS, first)
    np.testing.assert_array_equal(got, want)


def test_nothing_live_sees_padding():
    seen = mask.causal(SEGMENTS, SEGMENTS)
    live = SEGMENTS > 0
    assert not (seen & live[:, :, None] & ~live[:, None, :]).any()


def test_positions_restart_with_each_document():
    want = [[0, 1, 0, 1, 2, 0], [0, 0, 1, 0, 1, 0]]
    np.testing.assert_array_equal(jax.jit(mask.restarting)(SEGMENTS), want)
