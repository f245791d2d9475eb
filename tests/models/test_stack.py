"""Layer stacks: scan, unrolling, remat and cycles agree."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.precision import Precision
from lmx.layers.attention.attention import Attention
from lmx.models.remat import POLICIES
from lmx.models.stack import group_layers

pytestmark = pytest.mark.usefixtures("exact")

B, T, V, DEPTH = 4, 8, 11, 2
DOUBLE = Precision(params="float64", compute="float64")
NO_POSITION = partial(Attention, heads=4, kv_heads=2, head_dim=4, position=None)
RUNS = [dict(unroll=DEPTH), *(dict(remat=name) for name in POLICIES)]
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, V, (B, T)), "int32")


@pytest.fixture(scope="module")
def make_with_dropout(make, exact):
    """Makes a model with experts, convolutions and all kinds of dropout."""
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
def full(make_with_dropout):
    """Loss and gradients of a plain scan over layers, with dropout."""
    return loss_and_gradient(make_with_dropout(), TOKENS, keys())


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_unrolling_and_remat_do_not_change_results(make_with_dropout, full, run):
    got = loss_and_gradient(make_with_dropout(**run), TOKENS, keys())
    for one, other in zip(*map(jax.tree.leaves, (got, full)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def test_losses_and_gradients_of_microbatches_add_up(make_with_dropout, full):
    parts = [
        loss_and_gradient(make_with_dropout(), TOKENS[rows], keys()[rows])
        for rows in (slice(0, 2), slice(2, 4))
    ]
    added = jax.tree.map(jnp.add, *parts)
    for one, other in zip(*map(jax.tree.leaves, (added, full)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def test_dropout_depends_on_the_keys(make_with_dropout, full):
    assert loss_and_gradient(make_with_dropout(), TOKENS, keys())[0] == full[0]
    assert loss_and_gradient(make_with_dropout(), TOKENS, keys(1))[0] != full[0]


def test_without_keys_there_is_no_dropout(make_with_dropout, make):
    never = make("post rope moe conv", depth=DEPTH, precision=DOUBLE)
    run = jax.jit(lambda model, keys=None: model.forward(TOKENS, keys=keys)[0])
    np.testing.assert_array_equal(run(make_with_dropout()), run(never, keys()))


def test_layers_have_independent_named_parameters(make_with_dropout):
    [(blocks, _)] = make_with_dropout().stack.kinds()
    w = blocks.attention.q.w
    assert w.axes == ("layers", "embed", "heads", "head_dim")
    assert (w.in_dims, w.out_dims) == (("embed",), ("heads", "head_dim"))
    assert w.shape == (DEPTH, 16, 4, 4)
    for weight in (w, blocks.mlp.gate, blocks.mlp.router.score.w):
        for layer in range(DEPTH):
            assert jnp.abs(weight[layer] - weight[layer - 1]).max() > 1e-2


@pytest.mark.parametrize("cycle", [2, 3])
def test_a_cycle_of_equal_layers_equals_the_layer(make, cycle):
    """The grouping of layers affects neither parameters nor outputs."""
    run = jax.jit(lambda model: model(TOKENS))
    one = make("pre waves dense", precision=DOUBLE)
    other = make("pre waves dense", precision=DOUBLE, attention=(NO_POSITION,) * cycle)
    assert len(other.stack.cycles[0].blocks) == cycle
    np.testing.assert_allclose(run(other), run(one), rtol=1e-12)


def test_layers_are_grouped_into_repeated_cycles_and_a_rest():
    for sizes, want in [
        ((4, 0, 1), [(0, 1, 4)]),
        ((6, 0, 2), [(0, 2, 3)]),
        ((8, 0, 5), [(0, 5, 1), (5, 3, 1)]),
        ((7, 3, 1), [(0, 3, 1), (3, 1, 4)]),
        ((9, 0, 4), [(0, 4, 2), (8, 1, 1)]),
        ((3, 1, 4), [(0, 1, 1), (1, 2, 1)]),
    ]:
        assert [tuple(group) for group in group_layers(*sizes)] == want
