"""Contract of attention backends: outputs and gradients equal the reference."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core import partitioning
from lmx.layers import mask
from lmx.layers.attention import backend, splash
from lmx.layers.attention.backend import AttentionMask, XLAAttention
from lmx.layers.attention.reference import ReferenceAttention
from lmx.layers.attention.ring import RingAttention
from lmx.layers.attention.splash import SplashAttention

B, N, H = 2, 4, 8
CASES = {
    "whole": {},
    "packed and padded": dict(packed=True),
    "window": dict(window=5),
    "window, packed": dict(window=5, packed=True),
    "window of one": dict(window=1),
    "soft-cap": dict(logit_cap=2.0, packed=True),
    "sink": dict(sink=True, window=9),
    "scale": dict(scale=0.7),
    "one head of keys": dict(K=1, packed=True),
    "as many heads of keys": dict(K=N),
    "all of it": dict(packed=True, window=7, logit_cap=2.0, sink=True, scale=0.7),
}
PLAIN = [case for case, how in CASES.items() if not {"cap", "sink"} & set(how)]
FINE, COARSE = RingAttention(block=5), RingAttention(block=64)
# Case, backend, length, dtype and tolerance.
FAST = [(case, FINE, 24, "float64", 1e-9) for case in CASES]
FAST += [("all of it", RingAttention(block=8), 24, "float32", 1e-5)]
FAST += [("all of it", SplashAttention(block=128), 160, "float32", 1e-5)]
FAST += [("window, packed", XLAAttention(), 24, "float32", 1e-5)]
NIGHTLY = [(case, COARSE, 23, "float64", 1e-9) for case in CASES]
NIGHTLY += [(case, XLAAttention(), 24, "float32", 1e-5) for case in PLAIN]
NIGHTLY += [(case, SplashAttention(block=256), 300, "float32", 1e-5) for case in CASES]
COUNTS = [pytest.param(*row, id=f"{row[0]}-{row[1]}") for row in FAST]
COUNTS += [
    pytest.param(*row, id=f"{row[0]}-{row[1]}", marks=pytest.mark.nightly)
    for row in NIGHTLY
]


@pytest.fixture
def tpu(monkeypatch):
    """Pretends to be a TPU; Pallas kernels are interpreted."""
    kernels, options = splash.kernels, []

    def interpreted(*args, **how):
        options.append(how)
        return real(*args, **how, interpret=True)

    real = kernels.make_splash_mha
    monkeypatch.setattr(partitioning, "platform", lambda: "tpu")
    monkeypatch.setattr(kernels, "make_splash_mha", interpreted)
    return options


def place(length, packed):
    """Two rows: one document, and three followed by padding."""
    segments = np.ones((B, length), "int32")
    if packed:
        segments[1, length // 3 :] = 2
        segments[1, length // 2 :] = 3
        segments[1, -length // 8 :] = 0
    return mask.describe_tokens(
        mask.positions_from_segments(jnp.asarray(segments)), jnp.asarray(segments)
    )


def inputs(length, dtype, K, sink):
    rng = np.random.default_rng(0)
    shapes = [(B, length, heads, H) for heads in (N, K, K)] + [(N,)] * sink
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def run_with_gradients(kernel, seen, inputs, **how):
    """The output, and the gradients of a sum of it with respect to all inputs."""
    live = seen.query.unpadded[..., None, None]

    def total(inputs):
        q, k, v, *sink = inputs
        y = kernel(q, k, v, seen, sink=sink[0] if sink else None, **how) * live
        return (jnp.sin(y) @ jnp.arange(1.0, H + 1)).sum(), y

    return jax.jit(jax.grad(total, has_aux=True))(inputs)


@pytest.mark.parametrize(("case", "kernel", "length", "dtype", "atol"), COUNTS)
def test_outputs_and_gradients_equal_the_reference(
    tpu, case, kernel, length, dtype, atol
):
    options = dict(packed=False, window=None, K=2, sink=False) | CASES[case]
    how = {name: options[name] for name in ("cap", "scale") if name in options}
    with jax.enable_x64(dtype == "float64"):
        arrays = inputs(length, dtype, options["K"], options["sink"])
        info = place(length, options["packed"])
        seen = AttentionMask(
            info, info, options["window"], single_document=not options["packed"]
        )
        got, want = (
            run_with_gradients(each, seen, arrays, **how)
            for each in (kernel, ReferenceAttention())
        )
    got, want = jax.device_get((got, want))
    scale = max(np.abs(x).max() for x in jax.tree.leaves(want))
    chex.assert_trees_all_close(got, want, rtol=0, atol=atol * scale)
    assert len(tpu) == isinstance(kernel, SplashAttention)


@pytest.mark.parametrize(
    "kernel", [RingAttention(block=4), SplashAttention(block=128)], ids=repr
)
def test_a_cache_may_have_its_tokens_in_any_order(kernel, caplog):
    """Slots in random order, some empty, and queries after all keys."""
    backend.log_once.cache_clear()
    rng = np.random.default_rng(1)
    order = jnp.asarray(np.stack([rng.permutation(11) for _ in range(B)]), "int32")
    segments = jnp.where(order < 9, 1 + (order > 3), -1)
    keys = mask.TokenInfo(order, order, segments)
    last = jnp.array([[7, 8]] * B, "int32")
    query = mask.TokenInfo(last, last, jnp.full((B, 2), 2))
    q, *_ = inputs(2, "float32", 2, False)
    _, k, v = inputs(11, "float32", 2, False)
    for window in (None, 3):
        seen = AttentionMask(query, keys, window)
        got, want = (
            jax.jit(partial(each, mask=seen, logit_cap=2.0))(q, k, v)
            for each in (kernel, ReferenceAttention())
        )
        np.testing.assert_allclose(got, want, atol=1e-5)
    leaves = "SplashAttention does not read a cache: RingAttention does."
    assert caplog.messages == [leaves] * isinstance(kernel, SplashAttention)


def test_splash_refuses_other_platforms_and_float64(tpu, monkeypatch):
    info = place(24, packed=False)
    with jax.enable_x64(True):
        q, k, v = inputs(24, "float64", 2, False)
    with pytest.raises(ValueError, match="not float64: change"):
        SplashAttention()(q, k, v, AttentionMask(info, info))
    monkeypatch.setattr(partitioning, "platform", lambda: "gpu")
    with pytest.raises(
        ValueError, match=r"this program is for gpu: change .*@RingAttention\(\)"
    ):
        SplashAttention()(q, k, v, AttentionMask(info, info))
