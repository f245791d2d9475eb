"""Contract of feed-forward layers, and the formula of each."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.layers.mlp import GELU, GeGLU, ReLU2, SwiGLU

B, T, D, F = 2, 3, 6, 10


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


FORMULAS = {
    GELU: lambda x, w: gelu(x @ w["up"]) @ w["down"],
    ReLU2: lambda x, w: np.maximum(x @ w["up"], 0) ** 2 @ w["down"],
    GeGLU: lambda x, w: (gelu(x @ w["gate"]) * (x @ w["up"])) @ w["down"],
    SwiGLU: lambda x, w: (
        (x @ w["gate"] / (1 + np.exp(-x @ w["gate"]))) * (x @ w["up"]) @ w["down"]
    ),
}
KINDS = pytest.mark.parametrize("kind", FORMULAS)


def run(layer, x):
    return jax.jit(lambda layer, x: layer(x, jnp.ones((B, T), int)))(layer, x)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (B, T, D))


@KINDS
def test_agrees_with_its_formula(kind, init, x):
    layer = kind(D, init, hidden=F)
    names = ("gate", "up", "down") if hasattr(layer, "gate") else ("up", "down")
    w = {name: np.asarray(getattr(layer, name).w[...]) for name in names}
    y, aux = run(layer, x)
    np.testing.assert_allclose(y, FORMULAS[kind](np.asarray(x), w), atol=1e-5)
    assert aux == {}


@KINDS
def test_other_tokens_do_not_affect_an_output(kind, init, x):
    layer = kind(D, init, hidden=F)
    changed = run(layer, x.at[:, 1:].add(1.0))[0]
    np.testing.assert_allclose(changed[:, 0], run(layer, x)[0][:, 0], atol=1e-6)


@KINDS
def test_every_weight_has_a_gradient(kind, init, x):
    def loss(layer):
        return jnp.square(layer(x, jnp.ones((B, T), int))[0]).sum()

    grads = jax.jit(jax.grad(loss))(kind(D, init, hidden=F))
    for grad in jax.tree.leaves(grads):
        assert jnp.isfinite(grad).all() and jnp.abs(grad).sum() > 0


@KINDS
def test_the_second_call_does_not_recompile(kind, init, x):
    call = jax.jit(
        chex.assert_max_traces(lambda layer, x: layer(x, jnp.ones((B, T), int)), n=1)
    )
    for shift in range(2):
        call(kind(D, init, hidden=F), x + shift)


@KINDS
def test_weights_name_their_input_and_output_axes(kind, init):
    layer = kind(D, init, hidden=F)
    assert layer.up.w.axes == ("embed", "mlp")
    assert (layer.down.w.in_dims, layer.down.w.out_dims) == (("mlp",), ("embed",))
