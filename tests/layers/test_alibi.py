"""ALiBi: slopes, and agreement with a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.layers import mask
from lmx.layers.mask import TokenInfo
from lmx.layers.position import ALiBi, alibi_slopes

B, T, K, G, H = 2, 5, 2, 3, 4
SEGMENTS = jnp.array([[1, 1, 1, 1, 1], [1, 1, 2, 2, 2]])
LOGITS = jax.random.normal(jax.random.key(0), (B, K, G, T, T))
Q = jnp.zeros((B, T, K * G, H))


def score(scheme, tokens: TokenInfo):
    return scheme.modify_logits(
        LOGITS, Q, mask.make_attention_mask(tokens, tokens), tokens, tokens
    )


def test_slopes_of_8_and_12_heads_are_the_published_ones():
    """Section 3, and `get_slopes` of the code that came with the paper."""
    eight = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    np.testing.assert_allclose(alibi_slopes(8), eight, rtol=1e-6)
    between = [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    np.testing.assert_allclose(alibi_slopes(12), eight + between, rtol=1e-6)


@pytest.mark.parametrize("heads", [1, 2, 6, 16, 40])
def test_heads_have_different_slopes(heads):
    assert len(set(alibi_slopes(heads).tolist())) == heads
    assert (alibi_slopes(heads) <= 1.0).all() and (alibi_slopes(heads) >= 2.0**-8).all()


def test_agrees_with_a_loop_over_pairs_of_one_document():
    tokens = mask.describe_tokens(mask.positions_from_segments(SEGMENTS), SEGMENTS)
    want, slope = np.array(LOGITS), np.asarray(alibi_slopes(K * G))
    for b, n, t, s in np.ndindex(B, K * G, T, T):
        if s <= t and SEGMENTS[b, s] == SEGMENTS[b, t]:
            want[b, n // G, n % G, t, s] -= slope[n] * (t - s)
    np.testing.assert_allclose(score(ALiBi(), tokens), want, rtol=1e-6)


def test_only_distance_matters():
    tokens = mask.describe_tokens(mask.positions_from_segments(SEGMENTS), SEGMENTS)
    far = tokens._replace(positions=tokens.positions + 37)
    np.testing.assert_array_equal(score(ALiBi(), far), score(ALiBi(), tokens))


def test_a_slope_of_zero_leaves_logits_unchanged():
    tokens = mask.describe_tokens(mask.positions_from_segments(SEGMENTS), SEGMENTS)
    gentle = score(ALiBi(bias_max=1e4), tokens)
    assert alibi_slopes(4, 1e4).max() == 0.0
    np.testing.assert_array_equal(gentle, LOGITS)


def test_bias_max_of_zero_gives_all_heads_slope_one():
    np.testing.assert_array_equal(alibi_slopes(12, bias_max=0.0), np.ones(12))
