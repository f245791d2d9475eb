"""One contract for every optimizer; each agrees with its paper."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lmx.core import sharding
from lmx.core.sharding import RULES, Mesh, is_variable
from lmx.layers.init import FanIn, Init
from lmx.train.optim import optimizer as optim

KINDS = {
    "adamw": optim.adamw,
    "lion": optim.lion,
    "sgd": optim.sgd,
    "adafactor": optim.adafactor,
    "muon": optim.muon,
}
CONTRACT = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
SIZES = dict(V=8, D=16, F=32)
RATE = 0.01


def rate(count):
    return RATE * jnp.ones(())


def make_params():
    """A table, a stack of matrices and a scale, annotated like those of a model."""
    init = Init(nnx.Rngs(0), FanIn(), depth=2)
    return nnx.State({
        "table": init.weight("VD", SIZES, in_dims="V", role="embed"),
        "up": init.weight("EDF", SIZES | {"E": 3}, in_dims="D", out_dims="F"),
        "down": init.weight("FD", SIZES, in_dims="F"),
        "scale": init.full("D", SIZES, 1.5),
        "head": init.weight("DV", SIZES, in_dims="D", role="head"),
    })  # fmt: skip


def gradients_like(params, step):
    """Synthetic gradients that differ between steps."""
    leaves, tree = jax.tree.flatten(params)
    noise = np.random.default_rng(step)
    return tree.unflatten([
        jnp.asarray(noise.normal(size=x.shape), x.dtype) for x in leaves
    ])  # fmt: skip


def cached(jitted: Any) -> int:
    """How many programs were compiled for it."""
    return jitted._cache_size()


def plain(tree):
    """Names and NumPy arrays in float64."""
    return {
        name: np.asarray(leaf[...], np.float64)
        for name, leaf in tree.items()
        if is_variable(leaf)
    }


def trained(optimizer, steps=4):
    """Parameters after every step of synthetic gradients, from step 0 on."""
    params = make_params()
    state = jax.jit(optimizer.init)(params)
    update = jax.jit(optimizer.update)
    history = [plain(params)]
    for step in range(steps):
        updates, state = update(gradients_like(params, step), state, params)
        params = optax.apply_updates(params, updates)
        history.append(plain(params))
    return history


def made_up(step, clip=None):
    """The gradients of that step in NumPy, clipped to a global norm."""
    grads = plain(gradients_like(make_params(), step))
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    scale = min(1.0, clip / norm) if clip else 1.0
    return {name: g * scale for name, g in grads.items()}


@CONTRACT
def test_a_few_steps_approach_the_minimum_of_a_quadratic(kind):
    optimizer, params = kind(rate), make_params()
    state = optimizer.init(params)

    def loss(params):
        return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(params))

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for _ in range(4):
        params, state, value = step(params, state)
        losses.append(value)
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    assert cached(step) == 1  # the second call does not recompile


@CONTRACT
def test_weight_decay_applies_to_matrices_and_embeddings_only(kind):
    optimizer, params = kind(rate, weight_decay=0.5), make_params()
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
    for name, update in plain(updates).items():
        share = 0.0 if name == "scale" else RATE * 0.5
        np.testing.assert_allclose(
            update, -share * plain(params)[name], rtol=1e-5, atol=1e-12
        )


@CONTRACT
def test_its_state_is_sharded_like_its_parameters(kind):
    optimizer, mesh = kind(rate), Mesh(data=2, fsdp=4).build(jax.devices(), RULES)
    params = make_params()
    places = sharding.shardings(
        jax.eval_shape(lambda: (params, optimizer.init(params))), mesh, RULES
    )
    _, state = jax.jit(lambda: (params, optimizer.init(params)), out_shardings=places)()
    kept = [leaf for leaf in jax.tree.leaves(state) if leaf.size > 3]
    assert kept
    for leaf in kept:
        shard = leaf.addressable_shards[0].data
        assert shard.size == leaf.size // 4, leaf.shape


def test_factored_moments_are_small_and_replicated():
    optimizer, params = optim.adafactor(rate, min_dim_size_to_factor=16), make_params()
    state = optimizer.init(params)
    mesh = Mesh(data=2, fsdp=4).build(jax.devices(), RULES)
    sharding.shardings(state, mesh, RULES)
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert (3, 16, 32) not in shapes and {(3, 16), (3, 32), (8, 16)} <= shapes
    updates, after = jax.jit(optimizer.update)(gradients_like(params, 0), state, params)
    chex.assert_trees_all_equal_structs(params, updates)
    chex.assert_trees_all_equal_structs(state, after)


@CONTRACT
def test_a_clipped_gradient_keeps_its_direction(kind):
    params = make_params()
    grads = gradients_like(params, 0)
    far = jax.tree.map(lambda g: 1e3 * g, grads)
    optimizer = kind(rate, clip=0.1)
    update = jax.jit(lambda g: optimizer.update(g, optimizer.init(params), params)[0])
    chex.assert_trees_all_close(update(grads), update(far), rtol=2e-4, atol=1e-8)


def test_adamw_agrees_with_the_loop_of_its_paper():
    b1, b2, eps, decay, clip = 0.8, 0.9, 1e-3, 0.3, 5.0
    found = trained(
        optim.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=decay, clip=clip)
    )
    params = found[0]
    m = v = dict.fromkeys(params, 0.0)
    for step, wanted in enumerate(found[1:]):
        for name, g in made_up(step, clip).items():
            m = m | {name: b1 * m[name] + (1 - b1) * g}
            v = v | {name: b2 * v[name] + (1 - b2) * g * g}
            mean, power = (
                m[name] / (1 - b1 ** (step + 1)),
                v[name] / (1 - b2 ** (step + 1)),
            )
            share = 0.0 if name == "scale" else decay
            change = mean / (np.sqrt(power) + eps) + share * params[name]
            params = params | {name: params[name] - RATE * change}
        chex.assert_trees_all_close(params, wanted, rtol=1e-4, atol=1e-6)


def test_sgd_agrees_with_nesterovs_loop():
    found = trained(optim.sgd(rate, momentum=0.7, weight_decay=0.2, clip=None))
    params = found[0]
    trace = dict.fromkeys(params, 0.0)
    for step, wanted in enumerate(found[1:]):
        for name, g in made_up(step).items():
            trace = trace | {name: g + 0.7 * trace[name]}
            share = 0.0 if name == "scale" else 0.2
            change = g + 0.7 * trace[name] + share * params[name]
            params = params | {name: params[name] - RATE * change}
        chex.assert_trees_all_close(params, wanted, rtol=1e-4, atol=1e-6)


def test_lion_is_the_sign_of_a_momentum():
    b1, b2 = 0.6, 0.8
    found = trained(optim.lion(rate, b1=b1, b2=b2, weight_decay=0.2, clip=None))
    params = found[0]
    m = dict.fromkeys(params, 0.0)
    for step, wanted in enumerate(found[1:]):
        for name, g in made_up(step).items():
            share = 0.0 if name == "scale" else 0.2
            change = np.sign(b1 * m[name] + (1 - b1) * g) + share * params[name]
            m = m | {name: b2 * m[name] + (1 - b2) * g}
            params = params | {name: params[name] - RATE * change}
        chex.assert_trees_all_close(params, wanted, rtol=1e-4, atol=1e-6)


def newton_schulz(g):
    """Five iterations of the quintic of Jordan 2024 on each matrix."""
    x = g / np.linalg.norm(g)
    x = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def test_the_first_step_of_muon_is_newton_schulz_of_the_gradient():
    first, then = trained(optim.muon(rate), steps=1)
    grads = made_up(0)
    for name, matrices in {"up": grads["up"], "down": grads["down"][None]}.items():
        made, summed = matrices.shape[2], matrices.shape[1]
        wanted = np.stack([newton_schulz(g) for g in matrices])
        wanted = wanted * max(1.0, made / summed) ** 0.5
        found = (first[name] - then[name]).reshape(wanted.shape) / RATE
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_an_update_of_muon_is_nearly_orthogonal_and_has_the_documented_size():
    first, then = trained(optim.muon(rate), steps=1)
    for name, (summed, made) in {"up": (16, 32), "down": (32, 16)}.items():
        for update in (first[name] - then[name]).reshape(-1, summed, made) / RATE:
            scale = max(1.0, made / summed) ** 0.5
            singular = np.linalg.svd(update / scale, compute_uv=False)
            assert 0.6 < singular.min() and singular.max() < 1.3
            rms = np.sqrt((update**2).mean())
            assert rms == pytest.approx(scale / max(summed, made) ** 0.5, rel=0.25)


def test_muon_uses_adam_for_embeddings_head_and_norms():
    names = ("table", "head", "scale")
    muon = trained(
        optim.muon(
            rate,
            embed_lr_scale=0.5,
            head_lr_scale=0.5,
            norm_lr_scale=0.5,
            adam_b1=0.8,
            adam_eps=1e-3,
        )
    )
    adam = trained(
        optim.adamw(
            lambda n: 0.5 * rate(n), b1=0.8, eps=1e-3, weight_decay=0.0, clip=None
        )
    )
    for one, other in zip(muon, adam, strict=True):
        chex.assert_trees_all_close(
            {name: one[name] for name in names},
            {name: other[name] for name in names},
            rtol=1e-5,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_opens_on_a_mesh(tiny, kind):
    mesh = ["Mesh.data=2", "Mesh.fsdp=2", "Mesh.tensor=2"]
    run = tiny(f"Experiment.optimizer=@{kind}", *mesh).build().open()
    assert jax.tree.leaves(run.abstract_state().opt_state)
