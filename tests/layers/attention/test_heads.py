"""What every attention must keep, whatever its kernel."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.layers import mask
from lmx.layers.attention import dot
from lmx.layers.attention.context import Context
from lmx.layers.attention.dot import soft_cap
from lmx.layers.attention.heads import Attention
from lmx.layers.norm import RMSNorm
from lmx.layers.position.rope import RoPE

B, T, N, H, D = 2, 5, 4, 8, 12
attend = jax.jit(dot.attend, static_argnames=("scored", "drop"))

CAPS = {None: None, 0.5: partial(soft_cap, cap=0.5)}
KV_HEADS = pytest.mark.parametrize("K", [1, 2, 4], ids=["mqa", "gqa", "mha"])


def make_inputs(K, seed=0, dtype="float32"):
    """Queries, keys, values and a mask of two documents in the second row."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(B, T, heads, H)) for heads in (N, K, K))
    segments = jnp.array([[1, 1, 1, 1, 1], [1, 1, 2, 2, 2]])
    place = mask.standing(mask.restarting(segments), segments)
    causal = mask.visible(place, place)
    q, k, v = (jnp.asarray(x, dtype) for x in (q, k, v))
    return q, k, v, causal


def one_query_at_a_time(q, k, v, mask, cap=None):
    q, k, v, mask = map(np.asarray, (q, k, v, mask))
    y, G = np.zeros_like(q), q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        seen = np.flatnonzero(mask[b, t])
        logit = k[b, seen, n // G] @ q[b, t, n] / np.sqrt(H)
        logit = cap * np.tanh(logit / cap) if cap else logit
        share = np.exp(logit - logit.max())
        y[b, t, n] = share / share.sum() @ v[b, seen, n // G]
    return y


def make_context(keys=None):
    segments = jnp.ones((B, T), int)
    return Context(mask.standing(mask.restarting(segments), segments), T, keys=keys)


@jax.jit
def run(layer, x, keys=None):
    return layer(x, make_context(keys))[0]


@pytest.fixture
def make(init):
    return partial(Attention, D, init, heads=N, kv_heads=2, head_width=H)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (B, T, D))


@KV_HEADS
@pytest.mark.parametrize("cap", CAPS)
def test_agrees_with_one_query_at_a_time(K, cap):
    with jax.enable_x64(True):
        inputs = make_inputs(K, dtype="float64")
        want = one_query_at_a_time(*inputs, cap)
        np.testing.assert_allclose(attend(*inputs, scored=CAPS[cap]), want, atol=1e-12)


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


def test_a_query_that_sees_nothing_is_finite_and_so_is_its_gradient():
    q, k, v, mask = make_inputs(K=2)

    def loss(*qkv):
        return attend(*qkv, jnp.zeros_like(mask)).sum()

    chex.assert_tree_all_finite(jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v))


def test_what_is_masked_gets_no_gradient():
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


def test_probabilities_are_what_is_dropped():
    q, k, v, mask = make_inputs(K=2)
    seen = []

    def first_key_only(probs):
        seen.append(probs)
        return probs.at[..., 1:].set(0.0)

    y = dot.attend(q, k, v, mask, drop=first_key_only)
    np.testing.assert_allclose(seen[0].sum(axis=-1), 1.0, rtol=1e-5)
    share = seen[0][..., 0].transpose(0, 3, 1, 2).reshape(B, T, N, 1)
    want = share * jnp.repeat(v[:, :1], N // 2, axis=2)
    np.testing.assert_allclose(y, want, atol=1e-6)


def test_a_soft_cap_is_the_identity_near_zero_and_never_exceeded():
    x = jnp.array([-1e6, -1e-3, 0.0, 1e-3, 1e6])
    np.testing.assert_allclose(soft_cap(x, 30.0), [-30, -1e-3, 0, 1e-3, 30], rtol=1e-5)
    with pytest.raises(ValueError, match="cannot be capped at 0.0: it must be above 0"):
        soft_cap(x, 0.0)


def test_a_mask_of_another_length_is_refused_with_its_letters():
    q, k, v, mask = make_inputs(K=2)
    with pytest.raises(Exception, match="T=5"):
        attend(q, k, v, mask[:, :, :4])


def test_uneven_heads_are_refused_by_name(init):
    with pytest.raises(ValueError, match="6 query heads cannot share 4 key/value"):
        Attention(D, init, heads=6, kv_heads=4, head_width=H)


def test_a_layer_is_its_projections_around_attend(make, x):
    layer, context = make(position=None), make_context()
    w = {name: np.asarray(getattr(layer, name).w[...]) for name in "qkv"}
    q, k, v = (np.einsum("BTD,DNH->BTNH", x, w[name]) for name in "qkv")
    y = one_query_at_a_time(q, k, v, mask.visible(context.here, context.here))
    want = np.einsum("BTNH,NHD->BTD", y, np.asarray(layer.out.w[...]))
    np.testing.assert_allclose(run(layer, x), want, atol=1e-5)


def test_positions_tell_orders_of_the_same_tokens_apart(make, x):
    """The last query sees the same keys: only a position scheme can tell."""
    swapped = x[:, jnp.array([1, 0, 2, 3, 4])]
    for position, differs in ((None, False), (RoPE(), True)):
        layer = make(position=position)
        change = jnp.abs(run(layer, x) - run(layer, swapped))[:, -1].max()
        assert (change > 1e-3) == differs


def test_a_norm_of_queries_and_keys_makes_their_scale_irrelevant(make, x):
    plain, normed = make(), make(qk_norm=RMSNorm)
    assert normed.q_norm.scale.axes == ("head_width",)
    for layer, changes in ((plain, True), (normed, False)):
        before = run(layer, x)
        layer.q.w = nnx.Param(layer.q.w[...] * 5.0)
        layer.k.w = nnx.Param(layer.k.w[...] * 3.0)
        assert (jnp.abs(run(layer, x) - before).max() > 1e-3) == changes


def test_dropout_acts_only_where_there_are_keys(make, x):
    layer, keys = make(dropout=0.5), jax.random.split(jax.random.key(0), B)
    never = make(dropout=0.0)
    nnx.update(never, nnx.state(layer))
    chex.assert_trees_all_equal(run(layer, x), run(never, x), run(never, x, keys))
    assert jnp.abs(run(layer, x, keys) - run(layer, x)).max() > 1e-2


def test_the_second_call_does_not_recompile(make, x):
    call = jax.jit(
        chex.assert_max_traces(lambda layer, x: layer(x, make_context())[0], n=1)
    )
    for seed in range(2):
        call(make(), x + seed)
