"""Decoders agree for all attention backends."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.layers.attention.attention import Attention
from lmx.layers.attention.backend import XLAAttention
from lmx.layers.attention.reference import ReferenceAttention
from lmx.layers.attention.ring import RingAttention

TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 11, (2, 6)), "int32")
SEGMENTS = jnp.array([[1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 2, 0]], "int32")


@pytest.fixture(scope="module")
def decoders(make):
    """Three decoders with equal parameters, with windows in every other layer."""
    each = []
    for kernel in (ReferenceAttention(), XLAAttention(), RingAttention(block=2)):
        layer = partial(Attention, heads=4, kv_heads=2, head_dim=4, backend=kernel)
        cycle = (partial(layer, window=3), layer)
        each.append(make("sandwich rope dense", attention=cycle, depth=2))
    for other in each[1:]:
        nnx.update(other, nnx.state(each[0]))
    return each


def read(model, segments):
    """All logits, from a cache filled by pieces of 4 and 2 tokens."""
    cache, start, logits = model.init_cache(2, 6), 0, []
    for length in (4, 2):
        here = slice(start, start + length)
        at = jnp.broadcast_to(jnp.arange(6, dtype="int32")[None, here], (2, length))
        piece, cache = model.decode(cache, TOKENS[:, here], at, segments[:, here])
        logits.append(piece)
        start += length
    return jnp.concatenate(logits, axis=1)


@pytest.mark.parametrize(
    "run",
    [
        lambda model: model(TOKENS),
        lambda model: model(TOKENS, None, SEGMENTS),
        lambda model: read(model, jnp.ones_like(TOKENS)),
    ],
    ids=["whole", "packed", "cached"],
)
def test_all_backends_give_the_logits_of_the_reference(decoders, run):
    want, *others = (jax.jit(run)(model) for model in decoders)
    for got in others:
        np.testing.assert_allclose(got, want, atol=1e-5)
