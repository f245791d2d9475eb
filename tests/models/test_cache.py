"""A text read in pieces is read as the whole."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.precision import Precision

pytestmark = pytest.mark.usefixtures("exact")

V, PADS, ROOM = 11, (0, 2), 9
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, V, (2, 8)), "int32")


@pytest.fixture(scope="module")
def model(make, variant, exact):
    return make(variant, precision=Precision(params="float64", compute="float64"))


@pytest.fixture(scope="module")
def read(model):
    """Reads tokens in pieces; compiled once for each length of a piece."""
    chex.clear_trace_counter()  # of the model before
    extend = jax.jit(
        chex.assert_max_traces(lambda model, *args: model.extend(*args), n=2)
    )

    def read(tokens, positions, segments, lengths):
        cache, start, logits = model.cache(len(tokens), ROOM), 0, []
        for length in lengths:
            inputs = (
                x[:, start : start + length] for x in (tokens, positions, segments)
            )
            piece, cache = extend(model, cache, *inputs)
            logits.append(piece)
            start += length
        return jnp.concatenate(logits, axis=1), cache

    return read


def test_cached_is_full_with_and_without_padding_on_the_left(model, read):
    """Prompts of 8 and 6 tokens that end together, in two pieces, then one by one."""
    pads = jnp.array(PADS)[:, None]
    place = jnp.arange(8)[None] - pads
    positions, segments = jnp.maximum(place, 0), (place >= 0).astype("int32")
    logits, cache = read(TOKENS, positions, segments, (3, 3, 1, 1))
    for row, pad in enumerate(PADS):
        alone = jnp.roll(TOKENS[row : row + 1], -pad, axis=1)
        whole = jax.jit(lambda model, tokens: model(tokens))(model, alone)
        np.testing.assert_allclose(logits[row, pad:], whole[0, : 8 - pad], atol=1e-9)
    assert cache.length == 8
    np.testing.assert_array_equal(cache.segments[:, :8], segments)
    assert not cache.segments[:, 8:].any()


def test_one_program_decodes_every_token(read):
    """And another reads every piece of three."""
    positions = jnp.tile(jnp.arange(8)[None], (2, 1))
    for lengths in ((3, 1, 1, 1, 1, 1), (1, 3, 1, 3)):
        read(TOKENS, positions, jnp.ones_like(TOKENS), lengths)
