"""Decoding with a KV cache equals a full forward pass."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.precision import Precision
from tests.models.conftest import VARIANTS

pytestmark = pytest.mark.usefixtures("exact")

V, PADS, CAPACITY = 11, (0, 2), 8
# One variant for each kind of cache, and one with experts.
KINDS = ("pre rope dense conv", "pre window sink", "pre latent", "pre infini")
KINDS += ("pre learned moe",)
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, V, (2, 8)), "int32")


@jax.jit
def full(model, *inputs):
    """All logits without a cache."""
    return model(*inputs)


@pytest.fixture(scope="module")
def model(make, variant, exact):
    return make(variant, precision=Precision(params="float64", compute="float64"))


@pytest.fixture(scope="module")
def read(model):
    """Reads tokens in pieces; compiled once for each length of a piece."""
    chex.clear_trace_counter()  # of the previous model
    extend = jax.jit(
        chex.assert_max_traces(lambda model, *args: model.decode(*args), n=2)
    )

    def read(tokens, positions, segments, lengths, cache=None):
        cache = cache or model.init_cache(len(tokens), CAPACITY)
        start, logits = 0, []
        for length in lengths:
            inputs = (
                x[:, start : start + length].astype("int32")
                for x in (tokens, positions, segments)
            )
            piece, cache = extend(model, cache, *inputs)
            logits.append(piece)
            start += length
        return jnp.concatenate(logits, axis=1), cache

    return read


def test_cached_equals_full_with_and_without_padding_on_the_left(model, read):
    """Prompts of 8 and 6 tokens with the same end, in two pieces, then one by one."""
    pads = jnp.array(PADS)[:, None]
    place = jnp.arange(8)[None] - pads
    positions, segments = jnp.maximum(place, 0), (place >= 0).astype("int32")
    logits, cache = read(TOKENS, positions, segments, (3, 3, 1, 1))
    unpadded = jnp.stack([jnp.roll(TOKENS[i], -pad) for i, pad in enumerate(PADS)])
    want = full(model, unpadded)
    for row, pad in enumerate(PADS):
        np.testing.assert_allclose(logits[row, pad:], want[row, : 8 - pad], atol=1e-9)
    np.testing.assert_array_equal(cache.lengths, 8 - np.array(PADS))


def test_cached_equals_full_with_padding_on_the_right(model, read):
    """Prompts of 6 and 4 tokens with the same start, then two tokens one by one."""
    place = np.arange(8)[None] - np.array([[0], [2]]) * (np.arange(8) >= 6)
    unpadded = (np.arange(8)[None] < np.array([[6], [4]])) | (np.arange(8) >= 6)
    tokens = jnp.take_along_axis(TOKENS, jnp.asarray(place), axis=1)
    inputs = jnp.asarray(place, "int32"), jnp.asarray(unpadded, "int32")
    logits, cache = read(tokens, *inputs, (3, 3, 1, 1))
    want = full(model, TOKENS)
    for row, length in enumerate(unpadded.sum(axis=1)):
        got = logits[row, unpadded[row]]
        np.testing.assert_allclose(got, want[row, :length], atol=1e-9)
        assert cache.lengths[row] == length


def test_packed_documents_are_cached_like_a_full_forward(model, read):
    """A document ends and another starts within a piece, with or without padding."""
    segments = jnp.array([[1, 1, 1, 0, 2, 2, 2, 2], [1, 1, 1, 1, 1, 2, 2, 2]], "int32")
    positions = jnp.array([[0, 1, 2, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0, 1, 2]], "int32")
    want = full(model, TOKENS, positions, segments)
    logits, _ = read(TOKENS, positions, segments, (3, 3, 1, 1))
    unpadded = segments > 0
    np.testing.assert_allclose(logits[unpadded], want[unpadded], atol=1e-9)


@pytest.mark.parametrize(
    "variant",
    [x if x in KINDS else pytest.param(x, marks=pytest.mark.nightly) for x in VARIANTS],
)
def test_cached_equals_full_in_float32(make, variant):
    """All tokens one by one."""
    model = make(variant, precision=Precision(params="float32", compute="float32"))
    extend = jax.jit(lambda model, *args: model.decode(*args))
    places = jnp.tile(jnp.arange(8, dtype="int32")[None], (2, 1))
    cache, logits = model.init_cache(2, CAPACITY), []
    for i in range(8):
        token = TOKENS[:, i : i + 1]
        piece, cache = extend(model, cache, token, places[:, i, None], token * 0 + 1)
        logits.append(piece)
    want = full(model, TOKENS)
    assert want.dtype == jnp.float32
    got = jnp.concatenate(logits, axis=1)
    np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))


def test_cache_rows_can_be_selected_in_any_order(read):
    """Row 1 twice, then the rows exchanged, continue as before."""
    ones = jnp.ones_like(TOKENS)
    positions = jnp.tile(jnp.arange(8)[None], (2, 1))
    alone, _ = read(TOKENS, positions, ones, (3, 3, 1, 1))
    _, cache = read(TOKENS[:, :6], positions[:, :6], ones[:, :6], (3, 3))
    for order in (jnp.array([1, 1]), jnp.array([1, 0])):
        last = (x[order, 6:7] for x in (TOKENS, positions, ones))
        logits, _ = read(*last, (1,), cache.select(order))
        np.testing.assert_allclose(logits[:, 0], alone[order, 6], atol=1e-9)
    assert cache.select(jnp.array([1, 1, 0])).lengths.tolist() == [6, 6, 6]


def test_one_program_decodes_every_token(read):
    """Another one reads every piece of three."""
    positions = jnp.tile(jnp.arange(8)[None], (2, 1))
    for lengths in ((3, 1, 1, 1, 1, 1), (1, 3, 1, 3)):
        read(TOKENS, positions, jnp.ones_like(TOKENS), lengths)
