"""Dropless experts are every expert evaluated on every token, and the chosen selected.

Forward and gradient, on one device and with the experts on several.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.core.sharding import RULES, Mesh, shardings
from lmx.layers.init import FanIn, Init
from lmx.layers.mlp import SwiGLU
from lmx.layers.moe.layer import ClampedMoE, MoE
from lmx.layers.moe.router import Sigmoid, TopK

B, T, D, E, F = 8, 6, 8, 8, 4
SEGMENTS = np.repeat([[1, 2, 0]], [3, 2, 1], axis=1).repeat(B, axis=0)
X, DOWN = np.random.default_rng(0).normal(size=(2, B, T, D))
TOP = partial(TopK, choices=2)
KINDS = {
    "top 2": partial(MoE, router=TOP),
    "clamped": partial(ClampedMoE, router=TOP),
    "sigmoid and shared": partial(
        MoE,
        router=partial(Sigmoid, choices=3, groups=2),
        shared=partial(SwiGLU, hidden=F),
    ),
}
EXACT = {"float32": 1e-5, "float64": 1e-10}
MESHES = [dict(expert=8), dict(fsdp=2, expert=4), dict(data=2, expert=2, tensor=2)]


def dispatched(layer, x):
    return layer(x, jnp.asarray(SEGMENTS))


def dense(layer, x):
    """Every expert on every token, one expert after the other."""
    routing, aux = layer.router(x, jnp.asarray(SEGMENTS))
    y_BTD = jnp.zeros_like(x)
    for e in range(E):
        mine_BT = jnp.where(routing.experts == e, routing.weights, 0).sum(axis=-1)
        parts = {name: p[e] for name, p in weights(layer).items()}
        gate, up = (
            x @ parts[n] + jnp.broadcast_to(parts.get(f"{n}_b", 0.0), (B, T, F))
            for n in ("gate", "up")
        )
        answer = layer.joined(gate, up) @ parts["down"]
        answer += jnp.broadcast_to(parts.get("down_b", 0.0), x.shape)
        y_BTD += mine_BT[:, :, None] * answer
    if layer.shared:
        y_BTD += layer.shared(x, jnp.asarray(SEGMENTS))[0]
    return y_BTD, aux


def weights(layer):
    names = ("gate", "up", "down", "gate_b", "up_b", "down_b")
    return {n: getattr(layer, n)[...] for n in names if hasattr(layer, n)}


def made(kind, dtype):
    """A layer whose offsets are not all alike, as parts."""
    layer = KINDS[kind](
        D, Init(nnx.Rngs(0), FanIn(), depth=2, dtype=dtype), experts=E, hidden=F
    )
    noise = np.random.default_rng(1)
    for name, p in weights(layer).items():
        if name.endswith("_b"):
            getattr(layer, name).set_value(
                jnp.asarray(noise.normal(size=p.shape), dtype)
            )
    return nnx.split(layer)


def found(take, kind, dtype, sizes=None):
    """The answers and auxiliary losses, and the gradient of their weighted sum."""
    graph, params = made(kind, dtype)

    def run(params, x):
        y_BTD, aux = take(nnx.merge(graph, params), x)
        total = (y_BTD * DOWN.astype(dtype)).sum()
        total += sum(mean.total for mean in aux.values())
        return total, (y_BTD, aux)

    grad = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)
    x = X.astype(dtype)
    if sizes is None:
        return jax.device_get(jax.jit(grad)(params, x))
    mesh = Mesh(**{"data": 1} | sizes).over(jax.devices(), RULES)
    places = shardings(params, mesh, RULES)
    params = jax.device_put(params, places)
    assert len(params["gate"][...].sharding.device_set) == 8
    return jax.device_get(jax.jit(grad)(params, x))


def close(some, others, dtype):
    """Each array as close as its largest number allows."""
    for one, other in zip(jax.tree.leaves(some), jax.tree.leaves(others), strict=True):
        limit = EXACT[dtype] * max(np.abs(other).max(), 1e-3)
        chex.assert_trees_all_close(one, other, rtol=0, atol=limit)
        assert one.dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", EXACT)
def test_dropless_is_all_experts_evaluated_and_the_chosen_selected(kind, dtype):
    with jax.enable_x64(dtype == "float64"):
        close(found(dispatched, kind, dtype), found(dense, kind, dtype), dtype)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("dtype", EXACT)
def test_it_is_so_with_experts_on_eight_devices(sizes, dtype):
    kind = "sigmoid and shared"
    with jax.enable_x64(dtype == "float64"):
        close(found(dispatched, kind, dtype, sizes), found(dense, kind, dtype), dtype)
