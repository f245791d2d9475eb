"""Infini-attention against a loop over segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.layers import mask
from lmx.layers.attention.attention import Attention
from lmx.layers.attention.infini import InfiniAttention, elu_plus_one
from lmx.layers.attention.kv_cache import AttentionInputs, CacheSize
from lmx.layers.init import Init
from lmx.layers.rope import RoPE
from tests.hash_init import HashInit

B, T, N, K, H, D, SEGMENT = 2, 9, 4, 2, 6, 12, 3
DOCUMENTS = np.array([[1] * 9, [1] * 5 + [2] * 4])


@pytest.fixture(scope="module", autouse=True)
def exact():
    """Runs in float64, where rounding does not hide errors."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def make():
    init = Init(nnx.Rngs(0), HashInit(), depth=2, dtype="float64")
    heads = dict(heads=N, kv_heads=K, head_dim=H)
    return lambda kind=InfiniAttention, **options: kind(D, init, **heads, **options)


@pytest.fixture(scope="module")
def x(exact):
    return jax.random.normal(jax.random.key(1), (B, T, D), "float64")


def run(layer, x, documents=DOCUMENTS, positions=None):
    segments = jnp.asarray(documents)
    positions = (
        mask.positions_from_segments(segments) if positions is None else positions
    )
    layer_inputs = AttentionInputs(
        mask.describe_tokens(positions, segments), x.shape[1]
    )
    return jax.jit(lambda layer, x: layer(x, layer_inputs)[0])(layer, x)


def with_params_of(layer, other):
    """`layer` with the shared parameters of `other`."""
    for name in ("q", "k", "v", "out"):
        setattr(layer, name, getattr(other, name))
    return layer


def sigma(x):
    return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1) + 1


rotate = jax.jit(RoPE().rotate)


def one_segment_at_a_time(layer, x):
    """Equations 2 to 6 for one document, head by head."""
    w = {name: np.asarray(getattr(layer, name).w[...]) for name in ("q", "k", "v")}
    q, k, v = (np.einsum("TD,DNH->TNH", x, w[name]) for name in "qkv")
    padding = ((0, T - len(x)), (0, 0), (0, 0))  # for one program
    turned_q, turned_k = (
        np.asarray(rotate(np.pad(y, padding)[None], jnp.arange(T)[None]))[0]
        for y in (q, k)
    )
    gate = 1 / (1 + np.exp(-np.asarray(layer.gate[...])))
    y = np.zeros_like(q)
    for n in range(N):
        memory, norm, h = np.zeros((H, H)), np.zeros(H), n // (N // K)
        for start in range(0, len(x), SEGMENT):
            part = slice(start, min(start + SEGMENT, len(x)))
            logits = turned_q[part, n] @ turned_k[part, h].T / np.sqrt(H)
            logits[np.triu_indices(len(logits), 1)] = -np.inf
            share = np.exp(logits - logits.max(axis=1, keepdims=True))
            y[part, n] = share / share.sum(axis=1, keepdims=True) @ v[part, h]
            if start:
                found = sigma(q[part, n])
                recalled = found @ memory / (found @ norm)[:, None]
                y[part, n] = gate[n] * recalled + (1 - gate[n]) * y[part, n]
            memory += sigma(k[part, h]).T @ v[part, h]
            norm += sigma(k[part, h]).sum(axis=0)
    return np.einsum("TNH,NHD->TD", y, np.asarray(layer.out.w[...]))


def test_agrees_with_the_papers_recurrence_over_segments_of_each_document(make, x):
    layer = make(segment_length=SEGMENT)
    layer.gate.set_value(jnp.array([-1.0, 0.0, 0.5, 3.0]))
    got = run(layer, x)
    for row, *part in ((0, 0, 9), (1, 0, 5), (1, 5, 9)):
        want = one_segment_at_a_time(layer, np.asarray(x)[row, slice(*part)])
        np.testing.assert_allclose(got[row, slice(*part)], want, atol=1e-12)


def test_one_segment_equals_plain_attention(make, x):
    layer = make(segment_length=T)
    plain = with_params_of(make(Attention), layer)
    np.testing.assert_array_equal(run(layer, x), run(plain, x))


def test_a_closed_gate_leaves_attention_within_segments_only(make, x):
    """Equals packed segments, since RoPE depends on distances only."""
    layer = make(segment_length=SEGMENT, gate=-1e9)
    plain = with_params_of(make(Attention), layer)
    one = np.tile(np.arange(T) // SEGMENT + 1, (B, 1))
    got = run(layer, x, np.ones((B, T), int))
    np.testing.assert_allclose(got, run(plain, x, one), atol=1e-12)


def test_an_open_gate_reads_memory_only_without_order(make, x):
    layer = make(segment_length=SEGMENT, gate=1e9)
    swapped = x[:, jnp.array([2, 4, 0, 1, 5, 3, 6, 7, 8])]
    one = np.ones((B, T), int)
    before, after = run(layer, x, one), run(layer, swapped, one)
    np.testing.assert_allclose(before[:, 6:], after[:, 6:], atol=1e-12)
    changed = x.at[:, 6:8].add(1.0)  # earlier tokens of its own segment
    after = run(layer, changed, one)
    np.testing.assert_allclose(before[:, 8], after[:, 8], atol=1e-12)


def test_memory_does_not_grow_with_the_text(make):
    layer = make(segment_length=SEGMENT)
    sizes = [
        layer.init_cache(CacheSize(1, length, jnp.dtype("bfloat16")))
        for length in (9, 900)
    ]
    assert [x.shape for x in sizes[0].local.values] == [(1, SEGMENT, K, H)] * 2
    assert jax.tree.map(jnp.shape, sizes[0]) == jax.tree.map(jnp.shape, sizes[1])
    assert sizes[0].sums.dtype == jnp.float32


def test_sigma_is_elu_plus_one_and_positive():
    x = jnp.array([-700.0, -40.0, -1.0, 0.0, 0.5, 9.0])
    np.testing.assert_allclose(elu_plus_one(x), jax.nn.elu(x) + 1.0, atol=1e-15)
    assert (elu_plus_one(x) > 0.0).all()
    np.testing.assert_allclose(jax.grad(lambda x: elu_plus_one(x).sum())(x)[-1], 1.0)
