"""Absolute positions."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.layers.init import Init
from lmx.layers.position import LearnedPosition, SinusoidalPosition
from tests.hash_init import HashInit

D = 6
KINDS = pytest.mark.parametrize(
    "kind",
    [partial(LearnedPosition, max_length=9), SinusoidalPosition],
    ids=["LearnedPosition", "SinusoidalPosition"],
)


@pytest.fixture
def make():
    return lambda kind: kind(D, Init(nnx.Rngs(0), HashInit(), depth=2))


@KINDS
def test_a_vector_depends_on_its_position_only(make, kind):
    layer = make(kind)
    positions = jnp.array([[0, 1, 2, 3], [3, 0, 3, 8]])
    y = layer(positions)
    assert y.shape == (2, 4, D)
    np.testing.assert_array_equal(y[0, 3], y[1, 0])
    np.testing.assert_array_equal(y[0, 0], y[1, 1])


@KINDS
def test_no_two_positions_are_alike(make, kind):
    y = make(kind)(jnp.arange(9)[None])[0]
    distance = jnp.abs(y[:, None] - y[None]).max(axis=-1)
    assert (distance + jnp.eye(9) > 0.1).all()


@KINDS
def test_the_second_call_does_not_recompile(make, kind):
    layer = make(kind)
    call = jax.jit(
        chex.assert_max_traces(lambda layer, positions: layer(positions), n=1)
    )
    for shift in range(2):
        call(layer, shift + jnp.arange(4)[None])


def test_sines_and_cosines_are_as_published(make):
    y = make(partial(SinusoidalPosition, theta=100.0))(jnp.array([[0, 3, 50]]))
    for t, position in enumerate((0, 3, 50)):
        for pair in range(D // 2):
            angle = position / 100.0 ** (2 * pair / D)
            got = y[0, t, jnp.array([pair, pair + D // 2])]
            np.testing.assert_allclose(got, [np.sin(angle), np.cos(angle)], atol=1e-5)


def test_a_learned_position_is_a_row_of_its_table(make):
    layer = make(partial(LearnedPosition, max_length=9))
    positions = jnp.array([[8, 0, 3]])
    np.testing.assert_array_equal(layer(positions)[0], layer.table[...][positions[0]])
    assert layer.table.axes == ("length", "embed")


def test_only_learned_positions_have_a_maximum_length(make):
    assert make(partial(LearnedPosition, max_length=9)).max_length == 9
    assert make(SinusoidalPosition).max_length is None


def test_more_tokens_than_learned_positions_are_refused(make):
    layer = make(partial(LearnedPosition, max_length=9))
    with pytest.raises(
        ValueError, match="10 tokens exceed 9.*LearnedPosition.max_length to 10"
    ):
        layer(jnp.arange(10)[None])


def test_an_odd_width_is_refused(make):
    with pytest.raises(ValueError, match="need an even width, not 7"):
        SinusoidalPosition(7, Init(nnx.Rngs(0), HashInit(), depth=2))
