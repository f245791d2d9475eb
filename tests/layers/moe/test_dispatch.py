"""Dropless dispatch equals all experts evaluated on all tokens and masked.

Outputs and gradients, on one device and with expert parallelism.
"""

import functools
import itertools
import math
import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from lmx.config.registry import ConfigError
from lmx.core import partitioning
from lmx.core.sharding import RULES, Mesh, shardings, spec
from lmx.layers.init import Init
from lmx.layers.mlp import SwiGLU
from lmx.layers.moe.moe import ClampedMoE, MoE
from lmx.layers.moe.router import SigmoidRouter, TopKRouter
from tests.hash_init import HashInit

B, T, D, E, F = 8, 6, 8, 8, 4
SEGMENTS = np.repeat([[1, 2, 0]], [3, 2, 1], axis=1).repeat(B, axis=0)
X, DOWN = np.random.default_rng(0).normal(size=(2, B, T, D))
TOP = partial(TopKRouter, top_k=2)
KINDS = {
    "top 2": partial(MoE, router=TOP),
    "clamped": partial(ClampedMoE, router=TOP),
    "sigmoid and shared": partial(
        MoE,
        router=partial(SigmoidRouter, top_k=3, groups=2),
        shared=partial(SwiGLU, hidden=F),
    ),
}
EXACT = {"float32": 1e-5, "float64": 1e-10}
FAST = [
    ("expert=8", "top 2", "float64"),
    ("fsdp=2 x expert=2 x tensor=2", "clamped", "float64"),
    ("data=2 x expert=2 x context=2", "sigmoid and shared", "float32"),
]
MESHES = """data=8|fsdp=8|expert=2|expert=4|expert=8|data=2 x expert=4|fsdp=2 x expert=4
expert=4 x tensor=2|expert=4 x context=2|data=2 x expert=2 x tensor=2
fsdp=2 x expert=2 x tensor=2|data=2 x expert=2 x context=2""".replace("\n", "|")
CASES = FAST + [
    pytest.param(*case, marks=pytest.mark.nightly)
    for case in itertools.product(MESHES.split("|"), KINDS, EXACT)
    if case not in FAST
]


def run_dispatch(layer, x):
    return layer(x, jnp.asarray(SEGMENTS))


def dense(layer, x):
    """Every expert on every token, in a loop over experts."""
    routing, aux = layer.router(x, jnp.asarray(SEGMENTS))
    y_BTD = jnp.zeros_like(x)
    for e in range(E):
        mine_BT = jnp.where(routing.experts == e, routing.weights, 0).sum(axis=-1)
        parts = {name: p[e] for name, p in weights(layer).items()}
        gate, up = (
            x @ parts[n] + jnp.broadcast_to(parts.get(f"{n}_b", 0.0), (B, T, F))
            for n in ("gate", "up")
        )
        answer = layer.activate(gate, up) @ parts["down"]
        answer += jnp.broadcast_to(parts.get("down_b", 0.0), x.shape)
        y_BTD += mine_BT[:, :, None] * answer
    if layer.shared:
        y_BTD += layer.shared(x, jnp.asarray(SEGMENTS))[0]
    return y_BTD, aux


def weights(layer):
    names = ("gate", "up", "down", "gate_b", "up_b", "down_b")
    return {n: getattr(layer, n)[...] for n in names if hasattr(layer, n)}


def make_layer(kind, dtype):
    """Graph and parameters of a layer with random biases."""
    layer = KINDS[kind](
        D, Init(nnx.Rngs(0), HashInit(), depth=2, dtype=dtype), experts=E, hidden=F
    )
    noise = np.random.default_rng(1)
    for name, p in weights(layer).items():
        if name.endswith("_b"):
            getattr(layer, name).set_value(
                jnp.asarray(noise.normal(size=p.shape), dtype)
            )
    return nnx.split(layer)


@functools.cache
def compiled(take, kind, dtype, sizes="data=1"):
    """A program for outputs, auxiliary losses and gradients, and its arguments."""
    graph, params = make_layer(kind, dtype)

    def run(params, x):
        y_BTD, aux = take(nnx.merge(graph, params), x)
        total = (y_BTD * DOWN.astype(dtype)).sum()
        total += sum(mean.total for mean in aux.values())
        return total, (y_BTD, aux)

    grad = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)
    axes = {a: int(n) for a, n in (part.split("=") for part in sizes.split(" x "))}
    mesh = Mesh(**{"data": 1} | axes).build(jax.devices(), RULES)
    params = jax.device_put(params, shardings(params, mesh, RULES))
    assert len(params["gate"][...].sharding.device_set) == math.prod(axes.values())
    rows = NamedSharding(mesh, spec(("batch", "length", "embed"), X.shape, mesh, RULES))
    arrays = params, jax.device_put(X.astype(dtype), rows)
    return jax.jit(partitioning.with_partitioning(mesh, RULES, grad)).lower(
        *arrays
    ).compile(), arrays


def got(take, kind, dtype, *sizes):
    program, arrays = compiled(take, kind, dtype, *sizes)
    return jax.device_get(program(*arrays))


def assert_close(some, others, dtype):
    """Compares each array relative to its largest element."""
    for one, other in zip(jax.tree.leaves(some), jax.tree.leaves(others), strict=True):
        limit = EXACT[dtype] * max(np.abs(other).max(), 1e-3)
        chex.assert_trees_all_close(one, other, rtol=0, atol=limit)
        assert one.dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", EXACT)
def test_dropless_equals_all_experts_evaluated_and_masked(kind, dtype):
    with jax.enable_x64(dtype == "float64"):
        assert_close(got(run_dispatch, kind, dtype), got(dense, kind, dtype), dtype)


@pytest.mark.parametrize(("sizes", "kind", "dtype"), CASES)
def test_dropless_equals_all_experts_on_any_mesh(sizes, kind, dtype):
    with jax.enable_x64(dtype == "float64"):
        assert_close(
            got(run_dispatch, kind, dtype, sizes), got(dense, kind, dtype), dtype
        )


def count_moved(program, how):
    """Elements that each collective of that kind gives a device."""
    got = re.findall(rf"= (.*) {how}\(", program.as_text())
    return [
        sum(math.prod(map(int, re.findall(r"\d+", size))) for size in sizes)
        for sizes in (re.findall(r"\w+\[([\d,]+)\]", shapes) for shapes in got)
    ]


def test_tokens_are_sent_only_to_the_devices_of_their_experts():
    with jax.enable_x64(True):
        program, _ = compiled(run_dispatch, "top 2", "float64", "expert=8")
    room = 8 * T * D  # capacity for the row of every device
    assert (
        count_moved(program, "all-to-all") == [room] * 4
    )  # dispatch, combine and their gradients
    router, counts = D * E, 8 * E
    assert sorted(count_moved(program, "all-gather")) == [router, counts]


@pytest.mark.nightly
def test_tokens_are_not_sent_without_expert_parallelism():
    with jax.enable_x64(True):
        program, _ = compiled(run_dispatch, "top 2", "float64", "data=8")
    assert not count_moved(program, "all-to-all")
    assert not count_moved(program, "all-gather")


@pytest.mark.parametrize(
    ("rules", "options"),
    [
        (
            dict(batch=("data",)),
            "experts are sharded over ['expert'] and tokens are not",
        ),
        (dict(mlp=("data",)), "hidden units of experts are both sharded over ['data']"),
        (dict(embed=("tensor",)), "weights cannot be sharded over ('tensor',) along"),
    ],
)
def test_unsupported_sharding_rules_are_refused(rules, options):
    mesh = Mesh(data=2, expert=2, tensor=2).build(jax.devices(), RULES)
    rules = dict(RULES) | rules
    graph, params = make_layer("top 2", "float32")
    run = partitioning.with_partitioning(
        mesh,
        rules,
        lambda params: run_dispatch(nnx.merge(graph, params), jnp.asarray(X)),
    )
    with pytest.raises(ConfigError, match=re.escape(options)):
        jax.eval_shape(run, params)
