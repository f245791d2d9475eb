"""Self-attention layer against slow attention, and its options."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.layers import mask
from lmx.layers.attention.attention import Attention, AttentionSink
from lmx.layers.attention.kv_cache import AttentionInputs
from lmx.layers.linear import EinsumBias
from lmx.layers.norm import RMSNorm
from lmx.layers.rope import RoPE

B, T, N, H, D = 2, 5, 4, 8, 12


def make_layer_inputs(keys=None):
    segments = jnp.ones((B, T), int)
    return AttentionInputs(
        mask.describe_tokens(mask.positions_from_segments(segments), segments),
        T,
        keys=keys,
    )


@jax.jit
def run(layer, x, keys=None):
    return layer(x, make_layer_inputs(keys))[0]


@pytest.fixture
def make(init):
    return partial(Attention, D, init, heads=N, kv_heads=2, head_dim=H)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (B, T, D))


def test_uneven_heads_are_refused(init):
    with pytest.raises(ValueError, match="6 query heads cannot share 4 key/value"):
        Attention(D, init, heads=6, kv_heads=4, head_dim=H)


OPTIONS = {
    "plain": {},
    "scale": dict(scale=0.7),
    "cap": dict(logit_cap=0.5),
    "window": dict(window=2),
    "sink": dict(sink=AttentionSink),
    "norms of heads one by one": dict(qk_norm=RMSNorm),
    "norms of all heads": dict(qk_norm=RMSNorm, qk_norm_over="heads"),
    "offsets": dict(qkv=EinsumBias, out=EinsumBias),
}


def with_numbers(layer):
    """Random values instead of initial ones and zeros."""
    params = nnx.state(layer, nnx.Param)
    keys = iter(jax.random.split(jax.random.key(5), 20))
    moved = jax.tree.map(lambda x: x + jax.random.normal(next(keys), x.shape), params)
    nnx.update(layer, moved)
    return layer


def project(layer, equation, x):
    y = np.einsum(equation, x, np.asarray(layer.w[...]))
    return y + np.asarray(layer.b[...]) if isinstance(layer, EinsumBias) else y


def normalize(norm, x, of):
    if norm is None:
        return x
    flat = x if of == "head" else x.reshape(*x.shape[:2], -1)
    size = np.sqrt((flat**2).mean(axis=-1, keepdims=True) + norm.epsilon)
    return (flat / size * np.asarray(norm.scale[...])).reshape(x.shape)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_layer_equals_its_projections_around_slow_attention(
    make, x, slow_attention, option
):
    layer = with_numbers(make(position=None, **OPTIONS[option]))
    q, k, v = (
        project(getattr(layer, name), "BTD,DNH->BTNH", np.asarray(x)) for name in "qkv"
    )
    q, k = (
        normalize(norm, y, "heads" if layer.over_heads else "head")
        for norm, y in ((layer.q_norm, q), (layer.k_norm, k))
    )
    distance = np.arange(T)[:, None] - np.arange(T)
    seen = np.tile((distance >= 0) & (distance < (layer.window or T)), (B, 1, 1))
    sink = layer.sink and np.asarray(layer.sink.logit[...])
    how = dict(scale=layer.scale, logit_cap=layer.logit_cap, sink=sink)
    want = project(layer.out, "BTNH,NHD->BTD", slow_attention(q, k, v, seen, **how))
    np.testing.assert_allclose(run(layer, x), want, rtol=1e-4, atol=1e-4)


def test_a_window_as_long_as_the_text_has_no_effect(make, x):
    layer, narrow = make(), make(window=T - 1)
    nnx.update(narrow, nnx.state(layer))
    wide = make(window=T)
    nnx.update(wide, nnx.state(layer))
    np.testing.assert_array_equal(run(wide, x), run(layer, x))
    change = jnp.abs(run(narrow, x) - run(layer, x)).max(axis=(0, 2))
    np.testing.assert_array_equal(change > 1e-3, [False] * (T - 1) + [True])


def test_with_a_window_of_one_a_token_sees_itself_only(make, x):
    layer = make(window=1)
    v = np.einsum("BTD,DKH->BTKH", x, np.asarray(layer.v.w[...]))
    own = np.repeat(v, N // 2, axis=2)
    want = np.einsum("BTNH,NHD->BTD", own, np.asarray(layer.out.w[...]))
    np.testing.assert_allclose(run(layer, x), want, atol=1e-5)


def test_a_sink_has_one_initial_logit_per_head(make):
    sink = make(sink=partial(AttentionSink, logit=0.5)).sink
    assert sink.logit.axes == ("heads",)
    np.testing.assert_array_equal(sink.logit[...], [0.5] * N)


def test_only_positions_distinguish_the_order_of_tokens(make, x):
    """The last query sees the same keys in another order."""
    swapped = x[:, jnp.array([1, 0, 2, 3, 4])]
    for position, differs in ((None, False), (RoPE(), True)):
        layer = make(position=position)
        change = jnp.abs(run(layer, x) - run(layer, swapped))[:, -1].max()
        assert (change > 1e-3) == differs


def test_a_norm_of_queries_and_keys_makes_their_scale_irrelevant(make, x):
    plain, normalize = make(), make(qk_norm=RMSNorm)
    assert normalize.q_norm.scale.axes == ("head_dim",)
    for layer, changes in ((plain, True), (normalize, False)):
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
        chex.assert_max_traces(lambda layer, x: layer(x, make_layer_inputs())[0], n=1)
    )
    for seed in range(2):
        call(make(), x + seed)
