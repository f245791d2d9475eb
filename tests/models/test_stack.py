"""However the layers are run, they are the same layers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.precision import Precision
from lmx.models.remat import POLICIES

pytestmark = pytest.mark.usefixtures("exact")

B, T, V, DEPTH = 4, 8, 11, 2
DOUBLE = Precision(params="float64", compute="float64")
RUNS = [dict(unroll=DEPTH), *(dict(remat=name) for name in POLICIES)]
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, V, (B, T)), "int32")


@pytest.fixture(scope="module")
def dropping(make, exact):
    """Makes a model of experts, convolutions and every kind of dropout."""
    return partial(make, "post rope moe conv", depth=DEPTH, rate=0.2, precision=DOUBLE)


@jax.jit
def loss_and_gradient(model, tokens, keys):
    def loss(model):
        logits, aux = model.forward(tokens, keys=keys)
        extra = sum(mean.total.sum() for mean in aux.values())
        return jax.nn.logsumexp(logits, axis=-1).sum() + extra

    return jax.value_and_grad(loss)(model)


def keys(seed=0):
    return jax.random.split(jax.random.key(seed), B)


@pytest.fixture(scope="module")
def whole(dropping):
    """The loss and gradients of a plain loop over layers, with dropout."""
    return loss_and_gradient(dropping(), TOKENS, keys())


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_unrolled_and_rematerialised_are_what_the_loop_is(dropping, whole, run):
    got = loss_and_gradient(dropping(**run), TOKENS, keys())
    for one, other in zip(*map(jax.tree.leaves, (got, whole)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def test_the_loss_and_gradient_of_parts_of_a_batch_add_up(dropping, whole):
    parts = [
        loss_and_gradient(dropping(), TOKENS[rows], keys()[rows])
        for rows in (slice(0, 2), slice(2, 4))
    ]
    added = jax.tree.map(jnp.add, *parts)
    for one, other in zip(*map(jax.tree.leaves, (added, whole)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def test_keys_decide_what_is_dropped(dropping, whole):
    assert loss_and_gradient(dropping(), TOKENS, keys())[0] == whole[0]
    assert loss_and_gradient(dropping(), TOKENS, keys(1))[0] != whole[0]


def test_without_keys_nothing_is_dropped(dropping, make):
    never = make("post rope moe conv", depth=DEPTH, precision=DOUBLE)
    run = jax.jit(lambda model, keys=None: model.forward(TOKENS, keys=keys)[0])
    np.testing.assert_array_equal(run(dropping()), run(never, keys()))


def test_layers_are_initialised_apart_and_named(dropping):
    [(blocks, _)] = dropping().stack.all()
    w = blocks.attention.q.w
    assert w.axes == ("layers", "embed", "heads", "head_width")
    assert (w.into, w.out_of) == (("embed",), ("heads", "head_width"))
    assert w.shape == (DEPTH, 16, 4, 4)
    for weight in (w, blocks.mlp.gate, blocks.mlp.router.score.w):
        for layer in range(DEPTH):
            assert jnp.abs(weight[layer] - weight[layer - 1]).max() > 1e-2
