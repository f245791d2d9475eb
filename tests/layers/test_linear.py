"""The equation says all there is to say about a projection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.layers.linear import Affine, Einsum

SIZES = dict(D=5, N=3, H=4, F=6)


EQUATIONS = pytest.mark.parametrize(
    "equation, into, out_of",
    [
        ("BTD,DNH->BTNH", ("embed",), ("heads", "head_width")),
        ("BTNH,NHD->BTD", ("heads", "head_width"), ("embed",)),
        ("BTD,DF->BTF", ("embed",), ("mlp",)),
    ],
)


def input_of(equation):
    shape = [(SIZES | dict(B=2, T=3))[d] for d in equation.partition(",")[0]]
    return jax.random.normal(jax.random.key(0), shape)


@EQUATIONS
def test_the_equation_shapes_and_names_the_weight(init, equation, into, out_of):
    layer = Einsum(equation, SIZES, init)
    x = input_of(equation)
    want = np.einsum(equation, x, layer.w[...])
    np.testing.assert_allclose(layer(x), want, atol=1e-5)
    assert (layer.w.axes, layer.w.into, layer.w.out_of) == (into + out_of, into, out_of)


def test_it_computes_in_the_dtype_of_its_input(init):
    layer = Einsum("BTD,DF->BTF", SIZES, init)
    assert layer(jnp.ones((1, 2, 5), "bfloat16")).dtype == jnp.bfloat16
    assert layer.w.dtype == jnp.float32


@EQUATIONS
def test_an_affine_layer_is_born_as_the_einsum_of_its_weight(
    init, equation, into, out_of
):
    layer, plain = Affine(equation, SIZES, init), Einsum(equation, SIZES, init)
    plain.w = layer.w
    x = input_of(equation)
    np.testing.assert_array_equal(layer(x), plain(x))
    assert (layer.w.into, layer.b.axes, layer.b.into) == (into, out_of, ())


@EQUATIONS
def test_an_affine_layer_adds_an_offset_to_each_channel(init, equation, into, out_of):
    del into, out_of
    layer, x = Affine(equation, SIZES, init), input_of(equation)
    born = layer(x)
    offset = np.random.default_rng(0).normal(size=layer.b.shape).astype("float32")
    layer.b.set_value(jnp.asarray(offset))
    np.testing.assert_allclose(layer(x), born + offset[None, None], atol=1e-6)
    assert layer(x.astype("bfloat16")).dtype == jnp.bfloat16
