"""Attention backends without a cache, and what each refuses."""

from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.core import partitioning
from lmx.core.sharding import RULES, Mesh
from lmx.layers import mask
from lmx.layers.attention import backend as kernels
from lmx.layers.attention.attention import Attention, AttentionSink
from lmx.layers.attention.backend import AttentionMask, CuDNNAttention, XLAAttention
from lmx.layers.attention.kv_cache import make_inputs
from lmx.layers.attention.reference import ReferenceAttention
from lmx.layers.attention.ring import RingAttention
from lmx.layers.attention.splash import SplashAttention
from lmx.layers.position import ALiBi, CoPE

B, T, N, H, D = 2, 6, 4, 8, 12
SEGMENTS = {
    "whole": None,
    "packed": jnp.array([[1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 2, 0]]),
}
BACKENDS = pytest.mark.parametrize(
    "kernel", [ReferenceAttention(), XLAAttention()], ids=repr
)
PACKING = pytest.mark.parametrize("packing", SEGMENTS)
WINDOWS = pytest.mark.parametrize("window", [None, 1, 3, T])
KV_HEADS = pytest.mark.parametrize("K", [1, 2, 4], ids=["mqa", "gqa", "mha"])


def make_layer_inputs(packing):
    return make_inputs(jnp.zeros((B, T), int), None, SEGMENTS[packing], None)


def make_full_mask(window=None):
    here = make_layer_inputs("whole").tokens
    return AttentionMask(here, here, window, single_document=True)


def make_qkv(K, dtype="float32"):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(B, T, heads, H)) for heads in (N, K, K))
    return jnp.asarray(q, dtype), jnp.asarray(k, dtype), jnp.asarray(v, dtype)


@BACKENDS
@PACKING
@WINDOWS
@KV_HEADS
@pytest.mark.parametrize("scale", [None, 0.7])
def test_agrees_with_one_query_at_a_time(
    kernel, packing, window, K, scale, slow_attention
):
    layer_inputs, inputs = make_layer_inputs(packing), make_qkv(K)
    seen_BTS = mask.make_attention_mask(
        layer_inputs.tokens, layer_inputs.tokens, window
    )
    seen = AttentionMask(
        layer_inputs.tokens, layer_inputs.tokens, window, layer_inputs.single_document
    )
    got = jax.jit(partial(kernel, mask=seen, scale=scale))(*inputs)
    np.testing.assert_allclose(
        got, slow_attention(*inputs, seen_BTS, scale=scale), rtol=1e-5, atol=1e-6
    )


@PACKING
@WINDOWS
def test_a_layer_and_its_gradient_equal_the_reference(init, packing, window):
    make = partial(Attention, D, init, heads=N, kv_heads=2, head_dim=H, window=window)
    with jax.enable_x64(True):
        graph, params = nnx.split(make(backend=ReferenceAttention()))
        params = jax.tree.map(lambda x: x.astype("float64"), params)
        x_BTD = jax.random.normal(jax.random.key(1), (B, T, D), "float64")

        def loss(kernel, params, x):
            layer = nnx.merge(graph, params)
            layer.backend = kernel
            y_BTD, _ = layer(x, make_layer_inputs(packing))
            return jnp.square(y_BTD).sum(), y_BTD

        take = jax.jit(jax.grad(loss, (1, 2), has_aux=True), static_argnums=0)
        got, want = (
            take(XLAAttention(), params, x_BTD),
            take(ReferenceAttention(), params, x_BTD),
        )
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)


class Unmasked(AttentionMask):
    """Fails if a backend uses the dense mask."""

    @property
    def dense(self):
        raise AssertionError("a dense mask")


@pytest.mark.parametrize("window", [None, 2])
def test_rows_of_one_document_need_no_dense_mask(window):
    inputs, here = make_qkv(K=2), make_layer_inputs("whole").tokens
    got = XLAAttention()(*inputs, Unmasked(here, here, window, single_document=True))
    want = ReferenceAttention()(
        *inputs, AttentionMask(here, here, window, single_document=True)
    )
    np.testing.assert_allclose(got, want, atol=1e-5)
    with pytest.raises(AssertionError, match="a dense mask"):
        XLAAttention()(*inputs, Unmasked(here, here, window))


def test_rows_are_single_documents_only_without_segments():
    assert (
        make_layer_inputs("whole").single_document
        and not make_layer_inputs("packed").single_document
    )


FEATURES = {
    "logit_cap": dict(logit_cap=30.0),
    "sink": dict(sink=AttentionSink),
    "dropout": dict(dropout=0.1),
    "position": dict(position=ALiBi()),
    "position of queries": dict(position=lambda *known: CoPE(*known)),
}


@pytest.mark.parametrize(
    "kernel",
    [XLAAttention(), CuDNNAttention(), RingAttention(), SplashAttention()],
    ids=repr,
)
@pytest.mark.parametrize("feature", FEATURES)
def test_unsupported_features_are_refused_by_name(init, kernel, feature):
    make = partial(Attention, D, init, heads=N, kv_heads=2, head_dim=H)
    name, parameter = type(kernel).__name__, feature.split()[0]
    options = (
        rf"{name} does not support Attention\.{parameter}: .*@ReferenceAttention\(\)"
    )
    make(**FEATURES[feature])
    if parameter in kernel.supports:
        assert make(backend=kernel, **FEATURES[feature]).backend == kernel
        return
    with pytest.raises(ValueError, match=options):
        make(backend=kernel, **FEATURES[feature])


@pytest.mark.parametrize("width", [12, 264])
def test_cudnn_refuses_unsupported_head_dims(init, width):
    make = partial(Attention, D, init, heads=N, kv_heads=2, head_dim=width)
    make(backend=XLAAttention())
    with pytest.raises(ValueError, match=rf"Attention\.head_dim={width}: make it"):
        make(backend=CuDNNAttention())


def test_cudnn_refuses_other_platforms():
    inputs = make_qkv(K=2, dtype="bfloat16")
    with pytest.raises(ValueError, match="runs on gpu, and this program is for cpu"):
        CuDNNAttention()(*inputs, make_full_mask())


@pytest.fixture
def gpu(monkeypatch):
    """Pretends to be a GPU; XLA runs and records the calls to cuDNN."""
    calls, real = [], jax.nn.dot_product_attention

    def recorded(*inputs, **how):
        calls.append(how)
        return real(*inputs, **how | dict(implementation="xla"))

    monkeypatch.setattr(partitioning, "platform", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    kernels.log_once.cache_clear()
    return calls


def test_cudnn_refuses_float32(gpu):
    seen = make_full_mask()
    with pytest.raises(
        ValueError, match=r"computes in bfloat16 or float16, not float32"
    ):
        CuDNNAttention()(*make_qkv(K=2), seen)
    assert not gpu


def test_cudnn_refuses_a_sharded_sequence(gpu):
    mesh = Mesh(context=2).build(jax.devices()[:2], RULES)
    inputs = make_qkv(K=2, dtype="bfloat16")
    split = partitioning.with_partitioning(
        mesh, RULES, partial(CuDNNAttention(), mask=make_full_mask())
    )
    with pytest.raises(
        ValueError, match=r"over \('context',\): change .*@RingAttention\(\)"
    ):
        split(*inputs)
    assert not gpu


def test_cudnn_gets_a_dense_mask_only_for_packed_rows(gpu, caplog):
    inputs = make_qkv(K=2, dtype="bfloat16")
    CuDNNAttention()(*inputs, make_full_mask(window=3))
    assert not caplog.records
    for _ in range(2):
        CuDNNAttention()(
            *inputs, replace(make_full_mask(window=3), single_document=False)
        )
    (options,) = caplog.messages
    assert "dense mask of 0.0 MB" in options
    whole, packed, _ = gpu
    assert whole["implementation"] == packed["implementation"] == "cudnn"
    assert whole["local_window_size"] == (2, 0) and "mask" not in whole
    assert packed["mask"].shape == (B, 1, T, T)
