"""Short causal convolution: causal, local and separate for each document."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.layers.conv import ShortConv, causal_conv
from lmx.layers.mask import describe_tokens, positions_from_segments

B, T, D, I = 2, 7, 3, 2


def place(*lengths):
    """Tokens of rows with documents of these lengths."""
    row = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    segments = jnp.asarray(np.tile(row, (B, 1)))
    return describe_tokens(positions_from_segments(segments), segments)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (B, T, D))


@pytest.fixture
def layer(init):
    layer = ShortConv(D, init, reach=I)
    layer.w = nnx.Param(jax.random.normal(jax.random.key(1), (I, D)))
    return layer


def test_agrees_with_a_convolution_of_each_channel(layer, x):
    y, _ = layer(x, place(T), None)
    for b, d in np.ndindex(B, D):
        taps = np.concatenate([[1.0], layer.w[:, d]])
        want = np.convolve(x[b, :, d], taps)[:T]
        np.testing.assert_allclose(y[b, :, d], want, atol=1e-5)


def test_the_future_does_not_reach_the_past(layer, x):
    changed, _ = layer(x.at[:, 3:].add(1.0), place(T), None)
    np.testing.assert_array_equal(changed[:, :3], layer(x, place(T), None)[0][:, :3])


def test_documents_of_a_row_do_not_mix(layer, x):
    packed, _ = layer(x, place(1, 4, 2), None)
    for start, stop in ((0, 1), (1, 5), (5, 7)):
        alone, _ = layer(x[:, start:stop], place(stop - start), None)
        np.testing.assert_allclose(packed[:, start:stop], alone, atol=1e-6)


@pytest.mark.parametrize("pieces", [(3, 4), (1, 1, 5), (1,) * 7])
def test_a_text_in_pieces_equals_the_complete_text(layer, x, pieces):
    full, _ = layer(x, place(T), None)
    past, start, parts = layer.init_cache(B, x.dtype), 0, []
    for length in pieces:
        part = slice(start, start + length)
        y, past = layer(
            x[:, part], jax.tree.map(lambda x, part=part: x[:, part], place(T)), past
        )
        parts.append(y)
        start += length
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), full, atol=1e-6)
    np.testing.assert_array_equal(past.last, x[:, -I:])


@pytest.mark.parametrize("pads", [(0, 0, 1), (1, 0, 0), (0, 1, 1)])
def test_padding_anywhere_is_skipped(layer, x, pads):
    """Two tokens, then three with some padding, then two."""
    unpadded = jnp.array([1, 1, *(1 - p for p in pads), 1, 1])
    segments = jnp.tile(unpadded[None], (B, 1))
    where, kept = jnp.cumsum(segments, axis=1) - 1, unpadded > 0
    full, _ = layer(x[:, kept], place(int(unpadded.sum())), None)
    past, parts = layer.init_cache(B, x.dtype), []
    for part in (slice(0, 2), slice(2, 5), slice(5, 7)):
        here = describe_tokens(where[:, part], segments[:, part])
        y, past = layer(x[:, part], here, past)
        parts.append(y)
    got = jnp.concatenate(parts, axis=1)[:, kept]
    np.testing.assert_allclose(got, full, atol=1e-6)


def test_it_starts_as_the_identity_with_a_gradient(init, x):
    layer = ShortConv(D, init, reach=I)
    np.testing.assert_array_equal(layer(x, place(T), None)[0], x)
    before = layer.init_cache(B, x.dtype).last

    def loss(w):
        return jnp.square(causal_conv(x, before, w, place(T).positions)).sum()

    assert (jnp.abs(jax.grad(loss)(layer.w[...])) > 0).all()
    assert layer.w.axes == ("reach", "embed")


def test_the_second_call_does_not_recompile(layer, x):
    call = jax.jit(chex.assert_max_traces(lambda layer, *args: layer(*args), n=1))
    for shift in range(2):
        call(layer, x + shift, place(3 + shift, 4 - shift), None)
