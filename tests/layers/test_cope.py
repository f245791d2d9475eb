"""CoPE against a loop over queries and keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.layers import mask
from lmx.layers.position import CoPE

B, T, K, G, H, LIMIT = 2, 6, 2, 2, 4, 4
N = K * G
SEGMENTS = np.array([[1] * 6, [1, 1, 2, 2, 2, 2]])


@pytest.fixture(autouse=True)
def exact():
    """Runs in float64, where rounding does not hide errors."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def scheme(init):
    return CoPE(N, H, init, limit=LIMIT)


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    logits = 2.0 * rng.normal(size=(B, K, G, T, T))
    return jnp.asarray(logits), jnp.asarray(rng.normal(size=(B, T, N, H)))


@pytest.fixture
def tokens():
    segments = jnp.asarray(SEGMENTS)
    return mask.describe_tokens(mask.positions_from_segments(segments), segments)


def seen(t, s, b):
    return s <= t and SEGMENTS[b, s] == SEGMENTS[b, t]


def test_agrees_with_a_loop_over_queries_and_keys(scheme, inputs, tokens):
    """Gates, positions and interpolated vectors of section 4, one pair at a time."""
    logits, q = map(np.asarray, inputs)
    got = scheme.modify_logits(
        *inputs, mask.make_attention_mask(tokens, tokens), tokens, tokens
    )
    table = np.asarray(scheme.table[...], np.float64)
    for b, n, t, s in np.ndindex(B, N, T, T):
        if not seen(t, s, b):
            continue
        between = logits[b, n // G, n % G, t, s : t + 1]
        at = min((1 / (1 + np.exp(-between))).sum(), LIMIT - 1)
        low, high = int(np.floor(at)), int(np.ceil(at))
        vector = (at - low) * table[:, high] + (1 - at + low) * table[:, low]
        want = between[0] + q[b, t, n] @ vector
        np.testing.assert_allclose(got[b, n // G, n % G, t, s], want, atol=1e-12)


def test_open_gates_give_a_learned_vector_per_distance(scheme, inputs, tokens):
    """Shaw et al. 2018, arXiv:1803.02155, section 3.2, counted from 1 and clipped."""
    q = np.asarray(inputs[1])
    open_gates = jnp.full((B, K, G, T, T), 50.0)
    got = scheme.modify_logits(
        open_gates, inputs[1], mask.make_attention_mask(tokens, tokens), tokens, tokens
    )
    table = np.asarray(scheme.table[...], np.float64)
    for b, n, t, s in np.ndindex(B, N, T, T):
        if seen(t, s, b):
            relative = table[:, min(t - s + 1, LIMIT - 1)]
            change = got[b, n // G, n % G, t, s] - 50.0
            np.testing.assert_allclose(change, q[b, t, n] @ relative, atol=1e-12)


def test_closed_gates_put_all_keys_at_position_zero(scheme, inputs, tokens):
    closed = jnp.full((B, K, G, T, T), -800.0)
    got = scheme.modify_logits(
        closed, inputs[1], mask.make_attention_mask(tokens, tokens), tokens, tokens
    )
    vector = np.asarray(scheme.table[:, 0], np.float64)
    want = np.einsum("BTNH,H->BNT", inputs[1], vector).reshape(B, K, G, T)
    np.testing.assert_allclose(got[..., 0] + 800.0, want, atol=1e-10)


def test_the_order_of_keys_in_the_cache_does_not_matter(scheme, inputs, tokens):
    """As in a ring buffer, where the newest key may be in any slot."""
    logits, q = inputs
    order = jnp.array([4, 5, 0, 1, 2, 3])
    moved = type(tokens)(*(x[:, order] for x in tokens))
    got = scheme.modify_logits(
        logits[..., order], q, mask.make_attention_mask(tokens, moved), tokens, moved
    )
    want = scheme.modify_logits(
        logits, q, mask.make_attention_mask(tokens, tokens), tokens, tokens
    )
    np.testing.assert_allclose(got, want[..., order], atol=1e-12)
