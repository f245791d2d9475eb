"""Decoding with a KV cache equals a full forward pass."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.precision import Precision

pytestmark = pytest.mark.usefixtures("exact")

V, PADS, CAPACITY = 11, (0, 2), 8
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
        chex.assert_max_traces(lambda model, *args: model.decode(*args), n=3)
    )

    def read(tokens, positions, segments, lengths):
        cache, start, logits = model.init_cache(len(tokens), CAPACITY), 0, []
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
    for row, pad in enumerate(PADS):
        alone = jnp.roll(TOKENS[row : row + 1], -pad, axis=1)
        want = full(model, alone)
        np.testing.assert_allclose(logits[row, pad:], want[0, : 8 - pad], atol=1e-9)
    np.testing.assert_array_equal(cache.lengths, 8 - np.array(PADS))


def test_cached_equals_full_with_padding_on_the_right(model, read):
    """Prompts of 5 and 3 tokens with the same start, then three tokens one by one."""
    place = np.arange(8)[None] - np.array([[0], [2]]) * (np.arange(8) >= 5)
    unpadded = (np.arange(8)[None] < np.array([[5], [3]])) | (np.arange(8) >= 5)
    tokens = jnp.take_along_axis(TOKENS, jnp.asarray(place), axis=1)
    inputs = jnp.asarray(place, "int32"), jnp.asarray(unpadded, "int32")
    logits, cache = read(tokens, *inputs, (5, 1, 1, 1))
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
    for lengths in ((3, 3, 1, 1), (5, 3)):
        logits, _ = read(TOKENS, positions, segments, lengths)
        unpadded = segments > 0
        np.testing.assert_allclose(logits[unpadded], want[unpadded], atol=1e-9)


def test_cached_equals_full_in_float32(make, variant):
    """5 tokens, then 3 one by one."""
    model = make(variant, precision=Precision(params="float32", compute="float32"))
    extend = jax.jit(lambda model, *args: model.decode(*args))
    places = jnp.tile(jnp.arange(8, dtype="int32")[None], (2, 1))
    cache, logits = model.init_cache(2, CAPACITY), []
    for part in (slice(0, 5), slice(5, 6), slice(6, 7), slice(7, 8)):
        inputs = TOKENS[:, part], places[:, part], jnp.ones_like(places[:, part])
        piece, cache = extend(model, cache, *inputs)
        logits.append(piece)
    want = full(model, TOKENS)
    assert want.dtype == jnp.float32
    got = jnp.concatenate(logits, axis=1)
    np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))


def test_cache_rows_can_be_selected_in_any_order(model, read):
    """Row 1 twice, and row 0, continue as before."""
    ones = jnp.ones_like(TOKENS)
    positions = jnp.tile(jnp.arange(8)[None], (2, 1))
    alone, _ = read(TOKENS, positions, ones, (5, 1, 1, 1))
    _, cache = read(TOKENS[:, :5], positions[:, :5], ones[:, :5], (5,))
    order = jnp.array([1, 1, 0])
    extend = jax.jit(lambda model, *args: model.decode(*args)[0])
    at = (x[order, 5:6] for x in (TOKENS, positions, ones))
    logits = extend(model, cache.select(order), *at)
    np.testing.assert_allclose(logits[:, 0], alone[order, 5], atol=1e-9)


def test_one_program_decodes_every_token(read):
    """Another one reads every piece of three."""
    positions = jnp.tile(jnp.arange(8)[None], (2, 1))
    for lengths in ((3, 1, 1, 1, 1, 1), (1, 3, 1, 3)):
        read(TOKENS, positions, jnp.ones_like(TOKENS), lengths)
