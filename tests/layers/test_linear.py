"""Learned einsums: shapes, axes, dtype and bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.layers.linear import Einsum, EinsumBias

SIZES = dict(D=5, N=3, H=4, F=6)


@pytest.mark.parametrize(
    "equation, in_dims, out_dims",
    [
        ("BTD,DNH->BTNH", ("embed",), ("heads", "head_dim")),
        ("BTNH,NHD->BTD", ("heads", "head_dim"), ("embed",)),
        ("BTD,DF->BTF", ("embed",), ("mlp",)),
    ],
)
def test_the_equation_determines_the_shape_and_axes_of_the_weight(
    init, equation, in_dims, out_dims
):
    layer = Einsum(equation, SIZES, init)
    x_dims = equation.partition(",")[0]
    x = jax.random.normal(
        jax.random.key(0), [(SIZES | dict(B=2, T=3))[d] for d in x_dims]
    )
    want = np.einsum(equation, x, layer.w[...])
    np.testing.assert_allclose(layer(x), want, atol=1e-5)
    assert (layer.w.axes, layer.w.in_dims, layer.w.out_dims) == (
        in_dims + out_dims,
        in_dims,
        out_dims,
    )


def test_it_computes_in_the_dtype_of_its_input(init):
    layer = Einsum("BTD,DF->BTF", SIZES, init)
    assert layer(jnp.ones((1, 2, 5), "bfloat16")).dtype == jnp.bfloat16
    assert layer.w[...].dtype == jnp.float32


@pytest.mark.parametrize(
    "equation, bias_axes",
    [("BTD,DNH->BTNH", ("heads", "head_dim")), ("BTNH,NHD->BTD", ("embed",))],
)
def test_einsum_bias_adds_one_bias_per_output_channel(init, equation, bias_axes):
    layer = EinsumBias(equation, SIZES, init)
    x_dims = equation.partition(",")[0]
    x = jnp.ones([(SIZES | dict(B=2, T=3))[d] for d in x_dims])
    plain = layer(x)
    np.testing.assert_allclose(plain, np.einsum(equation, x, layer.w[...]), atol=1e-5)
    layer.b.set_value(jnp.arange(layer.b.size, dtype="float32").reshape(layer.b.shape))
    assert (layer.b.axes, layer.b.in_dims) == (bias_axes, ())
    for offset in (layer(x) - plain).reshape(6, *layer.b.shape):
        np.testing.assert_allclose(offset, layer.b[...], atol=1e-5)
