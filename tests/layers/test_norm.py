"""Contract of norms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.layers.norm import (
    AffineLayerNorm,
    LayerNorm,
    OffsetRMSNorm,
    RMSNorm,
    layer_norm,
    rms_norm,
)

D = 16
KINDS = pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])


@pytest.fixture
def x():
    return 3.0 * jax.random.normal(jax.random.key(0), (2, 3, D)) + 1.0


@pytest.mark.parametrize("shape", [(D,), (2, D), (2, 3, 4, D)])
def test_agrees_with_one_vector_at_a_time(shape):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, scale = rng.normal(size=shape), rng.normal(size=D)
        power = np.apply_along_axis(lambda v: np.full(D, (v @ v) / D), -1, x)
        want = x / np.sqrt(power + 1e-3) * scale
        got = rms_norm(jnp.asarray(x), jnp.asarray(scale), 1e-3)
        np.testing.assert_allclose(got, want, rtol=1e-12)
        mean, spread = (f(x, axis=-1, keepdims=True) for f in (np.mean, np.var))
        want = (x - mean) / np.sqrt(spread + 1e-3) * scale
        got = layer_norm(jnp.asarray(x), jnp.asarray(scale), 1e-3)
        np.testing.assert_allclose(got, want, rtol=1e-12)


@KINDS
def test_the_scale_of_a_vector_does_not_matter(kind, init, x):
    norm = kind(D, init, epsilon=0.0)
    np.testing.assert_allclose(norm(7.0 * x), norm(x), rtol=1e-5)


@pytest.mark.parametrize("kind, kept", [(RMSNorm, False), (LayerNorm, True)])
def test_only_layer_norm_subtracts_the_mean(kind, kept, init, x):
    norm = kind(D, init)
    assert (jnp.abs(norm(x + 2.0) - norm(x)).max() < 1e-4) == kept


@KINDS
def test_outputs_have_unit_power_times_the_gain(kind, init, x):
    norm = kind(D, init)
    np.testing.assert_allclose(jnp.square(norm(x)).mean(axis=-1), 1.0, rtol=1e-4)
    norm.scale = nnx.Param(jnp.arange(D, dtype="float32"))
    unit = kind(D, init)(x)
    np.testing.assert_allclose(norm(x), unit * np.arange(D)[None, None], rtol=1e-5)


@KINDS
def test_other_vectors_do_not_matter(kind, init, x):
    norm = kind(D, init)
    np.testing.assert_allclose(norm(x)[1, 2], norm(x[1:, 2:])[0, 0], rtol=1e-5)


@KINDS
def test_zero_input_gives_zero_and_a_finite_gradient(kind, init):
    norm = kind(D, init)
    value, grad = jax.value_and_grad(lambda x: norm(x).sum())(jnp.zeros((1, D)))
    assert value == 0.0 and jnp.isfinite(grad).all()


@KINDS
def test_bfloat16_is_normalized_in_float32(kind, init):
    x = 100.0 + jax.random.normal(jax.random.key(1), (64, D))
    narrow, norm = x.astype("bfloat16"), kind(D, init)
    want = norm(narrow.astype("float32"))
    assert norm(narrow).dtype == jnp.bfloat16
    np.testing.assert_array_equal(norm(narrow), want.astype("bfloat16"))


@KINDS
def test_float64_stays_float64(kind, init):
    with jax.enable_x64(True):
        assert kind(D, init)(jnp.ones((1, D), "float64")).dtype == jnp.float64


@KINDS
def test_the_second_call_does_not_recompile(kind, init, x):
    call = jax.jit(chex.assert_max_traces(lambda norm, x: norm(x), n=1))
    for shift in range(2):
        call(kind(D, init), x + shift)


@KINDS
def test_a_gain_has_the_axis_of_its_letter(kind, init):
    assert kind(D, init).scale.axes == ("embed",)
    assert kind(D, init, "H").scale.axes == ("head_dim",)


@pytest.mark.parametrize("kind", [OffsetRMSNorm, AffineLayerNorm])
def test_a_zero_offset_has_no_effect(kind, init, x):
    plain = RMSNorm if kind is OffsetRMSNorm else LayerNorm
    got, want = kind(D, init), plain(D, init)
    assert got.epsilon == want.epsilon and (got.offset[...] == 0.0).all()
    assert kind(D, init, "H").offset.axes == ("head_dim",)
    np.testing.assert_array_equal(got(x), want(x))


def test_an_offset_norm_agrees_with_numpy(init, x):
    norm = OffsetRMSNorm(D, init, epsilon=1e-3)
    offset = np.linspace(-1.0, 1.0, D, dtype="float32")
    norm.offset.set_value(jnp.asarray(offset))
    power = np.mean(np.square(x), axis=-1, keepdims=True)
    want = np.asarray(x) / np.sqrt(power + 1e-3) * (1.0 + offset)
    np.testing.assert_allclose(norm(x), want, rtol=1e-5, atol=1e-6)


def test_an_offset_norm_rounds_once_to_bfloat16(init, x):
    norm, narrow = OffsetRMSNorm(D, init), x.astype("bfloat16")
    norm.offset.set_value(jnp.linspace(-1.0, 1.0, D))
    want = norm(narrow.astype("float32")).astype("bfloat16")
    np.testing.assert_array_equal(norm(narrow), want)


def test_an_affine_norm_agrees_with_numpy(init, x):
    norm = AffineLayerNorm(D, init, epsilon=1e-3)
    gain, offset = (np.linspace(a, 2.0, D, dtype="float32") for a in (-1.0, 0.5))
    norm.scale.set_value(jnp.asarray(gain))
    norm.offset.set_value(jnp.asarray(offset))
    x = np.asarray(x)
    mean, spread = (f(x, axis=-1, keepdims=True) for f in (np.mean, np.var))
    want = (x - mean) / np.sqrt(spread + 1e-3) * gain + offset
    np.testing.assert_allclose(norm(jnp.asarray(x)), want, rtol=1e-4, atol=1e-5)
