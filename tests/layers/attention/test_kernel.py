"""What every kernel of attention must keep, and what each refuses."""

from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.core import spread
from lmx.core.sharding import RULES, Mesh
from lmx.layers import mask
from lmx.layers.attention import kernel as kernels
from lmx.layers.attention.context import reading
from lmx.layers.attention.heads import Attention, Sink
from lmx.layers.attention.kernel import XLA, CuDNN, Reference, Seen
from lmx.layers.attention.ring import Ring
from lmx.layers.attention.splash import Splash
from lmx.layers.position.alibi import ALiBi
from lmx.layers.position.cope import CoPE

B, T, N, H, D = 2, 6, 4, 8, 12
SEGMENTS = {
    "whole": None,
    "packed": jnp.array([[1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 2, 0]]),
}
EVERY = pytest.mark.parametrize("kernel", [Reference(), XLA()], ids=repr)
PACKING = pytest.mark.parametrize("packing", SEGMENTS)
WINDOWS = pytest.mark.parametrize("window", [None, 1, 3, T])
KV_HEADS = pytest.mark.parametrize("K", [1, 2, 4], ids=["mqa", "gqa", "mha"])


def make_context(packing):
    return reading(jnp.zeros((B, T), int), None, SEGMENTS[packing], None)


def seen_whole(window=None):
    here = make_context("whole").here
    return Seen(here, here, window, whole=True)


def make_inputs(K, dtype="float32"):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(B, T, heads, H)) for heads in (N, K, K))
    return jnp.asarray(q, dtype), jnp.asarray(k, dtype), jnp.asarray(v, dtype)


@EVERY
@PACKING
@WINDOWS
@KV_HEADS
@pytest.mark.parametrize("scale", [None, 0.7])
def test_agrees_with_one_query_at_a_time(kernel, packing, window, K, scale, slowly):
    context, inputs = make_context(packing), make_inputs(K)
    seen_BTS = mask.visible(context.here, context.here, window)
    seen = Seen(context.here, context.here, window, context.whole)
    got = jax.jit(partial(kernel, seen=seen, scale=scale))(*inputs)
    np.testing.assert_allclose(
        got, slowly(*inputs, seen_BTS, scale=scale), rtol=1e-5, atol=1e-6
    )


@PACKING
@WINDOWS
def test_a_layer_and_its_gradient_are_those_of_the_reference(init, packing, window):
    make = partial(Attention, D, init, heads=N, kv_heads=2, head_width=H, window=window)
    with jax.enable_x64(True):
        graph, params = nnx.split(make(kernel=Reference()))
        params = jax.tree.map(lambda x: x.astype("float64"), params)
        x_BTD = jax.random.normal(jax.random.key(1), (B, T, D), "float64")

        def loss(kernel, params, x):
            layer = nnx.merge(graph, params)
            layer.kernel = kernel
            y_BTD, _ = layer(x, make_context(packing))
            return jnp.square(y_BTD).sum(), y_BTD

        take = jax.jit(jax.grad(loss, (1, 2), has_aux=True), static_argnums=0)
        got, want = take(XLA(), params, x_BTD), take(Reference(), params, x_BTD)
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)


class Unmasked(Seen):
    """Fails where a kernel asks for a dense mask."""

    @property
    def mask(self):
        raise AssertionError("a dense mask")


@pytest.mark.parametrize("window", [None, 2])
def test_whole_rows_need_no_mask(window):
    inputs, here = make_inputs(K=2), make_context("whole").here
    got = XLA()(*inputs, Unmasked(here, here, window, whole=True))
    want = Reference()(*inputs, Seen(here, here, window, whole=True))
    np.testing.assert_allclose(got, want, atol=1e-5)
    with pytest.raises(AssertionError, match="a dense mask"):
        XLA()(*inputs, Unmasked(here, here, window))


def test_rows_are_whole_only_where_no_segments_are_given():
    assert make_context("whole").whole and not make_context("packed").whole


BEYOND = {
    "logit_cap": dict(logit_cap=30.0),
    "sink": dict(sink=Sink),
    "dropout": dict(dropout=0.1),
    "position": dict(position=ALiBi()),
    "position of queries": dict(position=lambda *known: CoPE(*known)),
}


@pytest.mark.parametrize("kernel", [XLA(), CuDNN(), Ring(), Splash()], ids=repr)
@pytest.mark.parametrize("beyond", BEYOND)
def test_what_a_kernel_does_not_serve_is_refused_by_name(init, kernel, beyond):
    make = partial(Attention, D, init, heads=N, kv_heads=2, head_width=H)
    name, parameter = type(kernel).__name__, beyond.split()[0]
    said = rf"kernel {name} cannot do what Attention\.{parameter} .*@Reference\(\)"
    make(**BEYOND[beyond])
    if parameter in kernel.serves:
        assert make(kernel=kernel, **BEYOND[beyond]).kernel == kernel
        return
    with pytest.raises(ValueError, match=said):
        make(kernel=kernel, **BEYOND[beyond])


@pytest.mark.parametrize("width", [12, 264])
def test_cudnn_refuses_a_head_width_by_name(init, width):
    make = partial(Attention, D, init, heads=N, kv_heads=2, head_width=width)
    make(kernel=XLA())
    with pytest.raises(ValueError, match=rf"Attention\.head_width={width}: it must be"):
        make(kernel=CuDNN())


def test_cudnn_refuses_a_process_without_a_gpu_by_name():
    inputs = make_inputs(K=2, dtype="bfloat16")
    with pytest.raises(ValueError, match="this process is on cpu: choose Attention"):
        CuDNN()(*inputs, seen_whole())


@pytest.fixture
def gpu(monkeypatch):
    """A machine that says it has a GPU, and what cuDNN was asked for, done by XLA."""
    asked, real = [], jax.nn.dot_product_attention

    def recorded(*inputs, **how):
        asked.append(how)
        return real(*inputs, **how | dict(implementation="xla"))

    monkeypatch.setattr(spread, "platform", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    kernels._say_price.cache_clear()
    return asked


def test_cudnn_refuses_float32_by_name(gpu):
    seen = seen_whole()
    with pytest.raises(ValueError, match=r"not float32: set Precision\.compute='bf"):
        CuDNN()(*make_inputs(K=2), seen)
    assert not gpu


def test_cudnn_refuses_rows_that_are_split_by_name(gpu):
    mesh = Mesh(context=2).over(jax.devices()[:2], RULES)
    inputs = make_inputs(K=2, dtype="bfloat16")
    split = spread.traced_for(mesh, RULES, partial(CuDNN(), seen=seen_whole()))
    with pytest.raises(ValueError, match=r"over \('context',\): choose .*@Ring\(\)"):
        split(*inputs)
    assert not gpu


def test_cudnn_is_asked_by_name_and_for_a_mask_only_where_rows_are_packed(gpu, caplog):
    inputs = make_inputs(K=2, dtype="bfloat16")
    CuDNN()(*inputs, seen_whole(window=3))
    assert not caplog.records
    for _ in range(2):
        CuDNN()(*inputs, replace(seen_whole(window=3), whole=False))
    (said,) = caplog.messages
    assert "dense mask of 0.0 MB" in said
    whole, packed, _ = gpu
    assert whole["implementation"] == packed["implementation"] == "cudnn"
    assert whole["local_window_size"] == (2, 0) and "mask" not in whole
    assert packed["mask"].shape == (B, 1, T, T)
