"""Grouped matmuls equal a loop over groups, with gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.layers.moe.grouped_matmul import Megablox, RaggedDot, megablox_matmul

M, E, F = 150, 4, 6
PRODUCTS = {
    "RaggedDot": RaggedDot(),
    "Megablox": partial(megablox_matmul, tile=128, interpret=True),
}
SIZES = [
    [40, 40, 40, 30],
    [1, 90, 7, 52],
    [10, 0, 90, 7],  # an empty group, and rows without a group
    [0, 0, 0, 129],
    [0, 0, 0, 0],
]


def loop(x, w, sizes, grad):
    """The product, and the gradients of `x` and `w` for `grad`."""
    y, dx, dw = np.zeros((len(x), w.shape[2])), np.zeros(x.shape), np.zeros(w.shape)
    begin = 0
    for e, size in enumerate(sizes):
        own = slice(begin, begin + size)
        y[own], dx[own] = x[own] @ w[e], grad[own] @ w[e].T
        dw[e] = x[own].T @ grad[own]
        begin += size
    return y, dx, dw


@pytest.fixture(scope="module", params=PRODUCTS)
def product(request):
    """The product and its gradients, compiled once for each shape."""

    @jax.jit
    def product(x, w, sizes, grad):
        y, back = jax.vjp(lambda x, w: PRODUCTS[request.param](x, w, sizes), x, w)
        return y, *back(grad)

    return product


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("width", [5, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_grouped_matmul_equals_a_loop_over_groups(product, sizes, width):
    noise = np.random.default_rng(0)
    x, w, grad = (
        noise.normal(size=size).astype("float32")
        for size in ((M, width), (E, width, F), (M, F))
    )
    got = product(x, w, jnp.asarray(sizes, "int32"), grad)
    for one, other in zip(got, loop(x, w, sizes, grad), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=1e-5)


def test_an_unsupported_dtype_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    Megablox().check(jnp.dtype("bfloat16"))
    with pytest.raises(ConfigError, match="Megablox computes in bfloat16 or float32"):
        Megablox().check(jnp.dtype("float64"))
