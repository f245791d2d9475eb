"""Contract of RoPE schemes, and the formula of each."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.layers.rope import (
    DynamicNTK,
    Llama3RoPE,
    NTKAware,
    NTKByParts,
    PositionInterpolation,
    RoPE,
    YaRN,
)

H = 8
SCALED = [
    PositionInterpolation(factor=4.0),
    NTKAware(factor=4.0),
    NTKByParts(factor=4.0, trained_length=64),
    YaRN(factor=4.0, trained_length=64),
    Llama3RoPE(trained_length=64),
    DynamicNTK(factor=4.0, trained_length=64),
]
SCHEMES = pytest.mark.parametrize(
    "scheme", [RoPE(), *SCALED], ids=lambda scheme: type(scheme).__name__
)


def vectors(seed, T=6, N=1, dtype="float32"):
    x = np.random.default_rng(seed).normal(size=(1, T, N, H))
    return jnp.asarray(x, dtype)


def scores(scheme, shift):
    q, k, positions = vectors(0), vectors(1), jnp.arange(6)[None] + shift
    q, k = scheme.rotate(q, positions), scheme.rotate(k, positions)
    return jnp.einsum("BTNH,BSNH->BTS", q, k)


@SCHEMES
def test_only_distance_matters(scheme):
    np.testing.assert_allclose(scores(scheme, 0), scores(scheme, 37), atol=1e-4)


@SCHEMES
def test_scores_of_equal_tokens_fall_with_distance(scheme):
    """Up to half a rotation of the fastest pair, pi tokens."""
    x = scheme.rotate(jnp.ones((1, 4, 1, H)), jnp.arange(4)[None])[0, :, 0]
    assert (jnp.diff(x @ x[0]) < 0).all()


@SCHEMES
def test_rotation_preserves_norms_up_to_the_attention_scaling(scheme):
    x = vectors(1)
    y = scheme.rotate(x, jnp.arange(6)[None])
    want = scheme.attention_scaling * jnp.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), want, rtol=1e-5)


@SCHEMES
def test_the_first_token_is_not_rotated(scheme):
    x = vectors(2, T=1, N=2)
    y = scheme.rotate(x, jnp.zeros((1, 1), int))
    np.testing.assert_allclose(y, scheme.attention_scaling * x, rtol=1e-6)


@SCHEMES
def test_agrees_with_multiplication_by_complex_numbers(scheme):
    with jax.enable_x64(True):
        x, positions = vectors(3, dtype="float64"), np.array([[0, 1, 2, 3, 77, 4096]])
        turn = np.exp(
            1j * positions[..., None] * np.asarray(scheme.inverse_frequency(H))
        )
        left, right = np.split(np.asarray(x), 2, axis=-1)
        want = scheme.attention_scaling * (left + 1j * right) * turn[:, :, None]
        got = scheme.rotate(x, jnp.asarray(positions))
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got[..., :4], want.real, atol=1e-12)
        np.testing.assert_allclose(got[..., 4:], want.imag, atol=1e-12)


@SCHEMES
def test_bfloat16_is_rotated_in_float32(scheme):
    x, positions = vectors(4, dtype="bfloat16"), 4096 + jnp.arange(6)[None]
    want = scheme.rotate(x.astype("float32"), positions).astype("bfloat16")
    np.testing.assert_array_equal(scheme.rotate(x, positions), want)


@SCHEMES
def test_the_second_call_does_not_recompile(scheme):
    rotate = jax.jit(chex.assert_max_traces(scheme.rotate, n=1))
    for shift in range(2):
        rotate(vectors(shift), shift + jnp.arange(6)[None])


@SCHEMES
def test_an_odd_number_of_channels_is_refused(scheme):
    with pytest.raises(ValueError, match="cannot rotate 5 channels in pairs"):
        scheme.inverse_frequency(5)


def test_frequencies_are_powers_of_theta():
    want = [10_000.0 ** (-2 * pair / 64) for pair in range(32)]
    np.testing.assert_allclose(RoPE().inverse_frequency(64), want, rtol=1e-6)


@pytest.mark.parametrize(
    "scheme",
    [
        PositionInterpolation(factor=1.0),
        NTKAware(factor=1.0),
        NTKByParts(factor=1.0, trained_length=64),
        YaRN(factor=1.0, trained_length=64),
        DynamicNTK(factor=9.0, trained_length=64),
        Llama3RoPE(factor=1.0, theta=10_000.0),
    ],
    ids=lambda scheme: type(scheme).__name__,
)
def test_a_factor_of_one_does_not_change_rope(scheme):
    np.testing.assert_allclose(
        scheme.inverse_frequency(64), RoPE().inverse_frequency(64), rtol=1e-6
    )
    assert scheme.attention_scaling == 1.0


def test_interpolation_divides_positions():
    far = PositionInterpolation(factor=4.0).rotate(vectors(0), 4 * jnp.arange(6)[None])
    near = RoPE().rotate(vectors(0), jnp.arange(6)[None])
    np.testing.assert_allclose(far, near, atol=1e-5)


def test_ntk_aware_raises_theta():
    base = 10_000.0 * 8.0 ** (128 / 126)  # Peng et al. 2023, section 3.1
    scaled, plain = (
        NTKAware(factor=8.0).inverse_frequency(128),
        RoPE().inverse_frequency(128),
    )
    np.testing.assert_allclose(
        scaled, RoPE(theta=base).inverse_frequency(128), rtol=1e-5
    )
    np.testing.assert_allclose(scaled[0], plain[0])
    np.testing.assert_allclose(scaled[-1], plain[-1] / 8.0, rtol=1e-6)


def test_llama3_rope_agrees_with_the_released_code():
    """Wavelengths and their bounds, as in apply_scaling of Meta's llama-models."""
    want = []
    for speed in 500_000.0 ** (-np.arange(0, 128, 2) / 128):
        wavelength = 2 * math.pi / speed
        if wavelength < 8192 / 4.0:
            want.append(speed)
        elif wavelength > 8192 / 1.0:
            want.append(speed / 8.0)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            want.append((1 - smooth) * speed / 8.0 + smooth * speed)
    np.testing.assert_allclose(Llama3RoPE().inverse_frequency(128), want, rtol=1e-5)


def test_by_parts_keeps_fast_pairs_and_interpolates_slow_ones():
    plain = np.asarray(RoPE().inverse_frequency(128))
    scaled = NTKByParts(factor=8.0, trained_length=4096).inverse_frequency(128)
    turns = 4096 * plain / (2 * math.pi)
    kept = np.interp(turns, [1.0, 32.0], [0.0, 1.0])  # section 3.2, gamma
    want = kept * plain + (1 - kept) * plain / 8.0
    np.testing.assert_allclose(scaled, want, rtol=1e-5)
    assert 0 < ((kept > 0) & (kept < 1)).sum() < 64


@pytest.mark.parametrize("whole", [True, False])
def test_the_yarn_ramp_is_linear_in_the_index_of_pairs(whole):
    plain = np.asarray(RoPE().inverse_frequency(128))
    scaled = YaRN(factor=8.0, trained_length=4096, truncate=whole).inverse_frequency(
        128
    )
    turns = 4096 * plain / (2 * math.pi)
    low, high = (
        np.interp(-math.log(n), -np.log(turns), np.arange(64)) for n in (32, 1)
    )
    ends = (math.floor(low), math.ceil(high)) if whole else (low, high)
    kept = np.interp(np.arange(64), ends, [1.0, 0.0])
    want = kept * plain + (1 - kept) * plain / 8.0
    np.testing.assert_allclose(scaled, want, rtol=1e-4)


def test_dynamic_ntk_depends_on_the_length_of_the_call():
    scheme = DynamicNTK(factor=4.0, trained_length=64)
    np.testing.assert_array_equal(
        scheme.inverse_frequency(H, 64), RoPE().inverse_frequency(H)
    )
    for length in (128, 256):
        stretched = NTKAware(factor=4.0 * length / 64 - 3.0)  # section 3.3
        np.testing.assert_allclose(
            scheme.inverse_frequency(H, length), stretched.inverse_frequency(H)
        )


def test_each_row_is_rotated_for_its_own_length():
    scheme, lengths = DynamicNTK(factor=4.0, trained_length=4), [5, 9]
    x, positions = (
        jnp.tile(vectors(0), (2, 1, 1, 1)),
        jnp.tile(jnp.arange(6)[None], (2, 1)),
    )
    got = scheme.rotate(x, positions, jnp.array(lengths))
    for row, length in enumerate(lengths):
        alone = scheme.rotate(x[:1], positions[:1], length)
        np.testing.assert_allclose(got[row], alone[0], atol=1e-6)


def test_a_fraction_of_the_channels_rotates():
    x, positions = vectors(5), jnp.arange(6)[None]
    part = RoPE(rotary_fraction=0.5).rotate(x, positions)
    np.testing.assert_array_equal(part[..., 4:], x[..., 4:])
    whole = RoPE().rotate(x[..., :4], positions)
    np.testing.assert_array_equal(part[..., :4], whole)


def test_the_interleaved_layout_equals_the_split_layout_of_reordered_channels():
    order = jnp.array([0, 2, 4, 6, 1, 3, 5, 7])
    x, positions = vectors(6), jnp.arange(6)[None]
    got = RoPE(layout="interleaved").rotate(x, positions)
    np.testing.assert_array_equal(got, RoPE().rotate(x[..., order], positions))


def test_yarn_divides_logits_by_the_temperature():
    yarn = YaRN(factor=16.0, trained_length=64)
    parts = YaRN(factor=16.0, trained_length=64, attention_factor=1.0)
    inverse = (0.1 * math.log(16.0) + 1.0) ** 2  # section 3.4, 1 / t
    np.testing.assert_allclose(scores(yarn, 3), inverse * scores(parts, 3), rtol=1e-4)


def test_invalid_schemes_are_refused():
    with pytest.raises(ValueError, match="need 4 or more rotating channels, not 2"):
        NTKAware(factor=2.0).inverse_frequency(2)
    with pytest.raises(ValueError, match="beta_slow must be below beta_fast"):
        NTKByParts(factor=2.0, trained_length=64, beta_slow=4.0, beta_fast=4.0)
