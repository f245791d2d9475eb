"""Dot-product attention against a loop over queries, and its invariances."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.layers import mask
from lmx.layers.attention import reference
from lmx.layers.attention.reference import soft_cap

B, T, N, H = 2, 5, 4, 8
OPTIONS = ("scale", "modify_logits", "dropout")
attend = jax.jit(reference.attend, static_argnames=OPTIONS)

CAPS = {None: None, 0.5: partial(soft_cap, cap=0.5)}
KV_HEADS = pytest.mark.parametrize("K", [1, 2, 4], ids=["mqa", "gqa", "mha"])


def make_inputs(K, seed=0, dtype="float32"):
    """Queries, keys, values and a mask of two documents in the second row."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(B, T, heads, H)) for heads in (N, K, K))
    segments = jnp.array([[1, 1, 1, 1, 1], [1, 1, 2, 2, 2]])
    place = mask.describe_tokens(mask.positions_from_segments(segments), segments)
    causal = mask.make_attention_mask(place, place)
    q, k, v = (jnp.asarray(x, dtype) for x in (q, k, v))
    return q, k, v, causal


@KV_HEADS
@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("sink", [None, np.array([-1.0, 0.0, 0.5, 2.0])], ids=str)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_agrees_with_one_query_at_a_time(K, cap, sink, scale, slow_attention):
    with jax.enable_x64(True):
        inputs = make_inputs(K, dtype="float64")
        want = slow_attention(*inputs, logit_cap=cap, sink=sink, scale=scale)
        logits = None if sink is None else jnp.asarray(sink)
        got = attend(*inputs, modify_logits=CAPS[cap], sink=logits, scale=scale)
        np.testing.assert_allclose(got, want, atol=1e-12)


def test_values_may_have_another_size_than_keys(slow_attention):
    q, k, v, mask = make_inputs(K=2)
    got = attend(q, k, v[..., :3], mask)
    np.testing.assert_allclose(got, slow_attention(q, k, v[..., :3], mask), atol=1e-5)


def test_a_query_that_sees_only_the_sink_is_zero():
    q, k, v, mask = make_inputs(K=2)
    y = attend(q, k, v, mask.at[0, 3].set(False), sink=jnp.zeros(N))
    assert (y[0, 3] == 0.0).all() and (y[0, 2] != 0.0).all()


def test_a_very_low_sink_has_no_effect():
    inputs = make_inputs(K=2)
    got = attend(*inputs, sink=jnp.full(N, -1e9))
    np.testing.assert_allclose(got, attend(*inputs), atol=1e-7)


@KV_HEADS
def test_the_future_does_not_reach_the_past(K):
    q, k, v, mask = make_inputs(K)
    before = attend(q, k, v, mask)
    after = attend(q, k.at[:, 3:].add(1.0), v.at[:, 3:].add(1.0), mask)
    chex.assert_trees_all_equal(before[:, :3], after[:, :3])
    assert (jnp.abs(before - after)[:, 3:].max(axis=(0, 2, 3)) > 0.1).all()


@KV_HEADS
def test_the_order_of_keys_does_not_matter(K):
    q, k, v, mask = make_inputs(K)
    order = jnp.array([3, 1, 4, 0, 2])
    moved = attend(q, k[:, order], v[:, order], mask[:, :, order])
    np.testing.assert_allclose(moved, attend(q, k, v, mask), atol=1e-6)


def test_a_fully_masked_query_is_finite_with_a_finite_gradient():
    q, k, v, mask = make_inputs(K=2)

    def loss(*qkv):
        return attend(*qkv, jnp.zeros_like(mask)).sum()

    chex.assert_tree_all_finite(jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v))


def test_masked_keys_get_no_gradient():
    q, k, v, mask = make_inputs(K=2)
    grads = jax.grad(lambda kv: attend(q, *kv, mask)[:, :3].sum())((k, v))
    assert all((grad[:, 3:] == 0).all() for grad in grads)


def test_bfloat16_attends_to_the_precision_of_its_inputs():
    inputs = make_inputs(2, dtype="bfloat16")
    y = attend(*inputs)
    assert y.dtype == jnp.bfloat16
    wide = [x.astype("float32") for x in inputs[:3]]
    want = attend(*wide, inputs[3])
    np.testing.assert_allclose(y.astype("float32"), want, atol=0.03)


def test_dropout_acts_on_probabilities():
    q, k, v, mask = make_inputs(K=2)
    seen = []

    def first_key_only(probs):
        seen.append(probs)
        return probs.at[..., 1:].set(0.0)

    y = reference.attend(q, k, v, mask, dropout=first_key_only)
    np.testing.assert_allclose(seen[0].sum(axis=-1), 1.0, rtol=1e-5)
    share = seen[0][..., 0].transpose(0, 3, 1, 2).reshape(B, T, N, 1)
    want = share * jnp.repeat(v[:, :1], N // 2, axis=2)
    np.testing.assert_allclose(y, want, atol=1e-6)


def test_a_soft_cap_is_the_identity_near_zero_and_a_bound():
    x = jnp.array([-1e6, -1e-3, 0.0, 1e-3, 1e6])
    np.testing.assert_allclose(soft_cap(x, 30.0), [-30, -1e-3, 0, 1e-3, 30], rtol=1e-5)


def test_a_mask_of_another_length_is_refused_by_its_dimension():
    q, k, v, mask = make_inputs(K=2)
    with pytest.raises(Exception, match="T=5"):
        attend(q, k, v, mask[:, :, :4])
