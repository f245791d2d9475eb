"""One training step: microbatches, dropout, weights and norms."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lmx.core import rng
from lmx.core.batch import Batch
from lmx.core.mean import Mean
from lmx.train.loop import train
from lmx.train.step import (
    StepConfig,
    TrainState,
    accumulate_gradients,
    compute_gradients,
    compute_norms,
    train_step,
)
from tests.hash_init import HASHED


def opened(tiny, kind, *overrides, parts=1):
    """A step config, parameters, an unevenly weighted batch and its keys."""
    experiment = tiny(HASHED, *overrides, kind=kind).build()
    graph, params = nnx.split(experiment.model(nnx.Rngs(0)))
    rate = experiment.schedule.build(10)
    recipe = StepConfig(
        graph, experiment.loss, experiment.optimizer(rate), rate, 0, parts
    )
    batch = experiment.data.open().batch_at(0, 0)
    uneven = np.arange(8, dtype=np.float32)[:, None] / 8
    batch = batch._replace(weights=batch.weights * uneven)
    return recipe, params, batch, rng.fold(0, 0, "dropout", 8)


def cached(jitted: Any) -> int:
    """How many programs were compiled for it."""
    return jitted._cache_size()


@pytest.mark.parametrize("kind", ["moe with dropout", "sigmoid"])
def test_microbatches_have_the_gradient_and_loss_of_the_batch(tiny, kind, x64):
    found = []
    for parts in (1, 4):
        recipe, params, batch, keys = opened(tiny, kind, *x64, parts=parts)
        take = jax.jit(
            lambda p, b, k, recipe=recipe: accumulate_gradients(recipe, p, b, k)
        )
        found.append(take(params, batch, keys))
    chex.assert_trees_all_close(*found, rtol=1e-11, atol=1e-13)
    assert float(found[0][1].weight) == batch.weights.sum()


class Scale(nnx.Module):
    """One parameter of 16 bits."""

    def __init__(self):
        self.scale = nnx.Param(jnp.ones((), jnp.bfloat16))


def test_gradients_of_microbatches_are_summed_in_float32():
    """256 + 1 is 256 in bfloat16. The state keeps its dtypes."""

    def loss(model, batch, keys):
        total = model.scale[...] * batch.weights.sum().astype(jnp.bfloat16)
        return Mean(total.astype(jnp.float32), jnp.float32(1)), {}

    graph, params = nnx.split(Scale())
    optimizer = optax.sgd(0.1, momentum=0.9)
    config = StepConfig(graph, loss, optimizer, lambda step: 0.1, 0, 8)
    ints = np.zeros((8, 1), np.int32)
    weights = np.ones((8, 1), np.float32)
    weights[0] = 256
    batch = Batch(ints, ints, weights, ints, ints)
    keys = rng.fold(0, 0, "dropout", 8)
    grads, _, _ = accumulate_gradients(config, params, batch, keys)
    assert float(grads["scale"][...]) == 263.0
    state = TrainState(jnp.zeros((), "int32"), params, optimizer.init(params))
    following, _ = jax.eval_shape(partial(train_step, config), state, batch, keys)
    for before, after in zip(*map(jax.tree.leaves, (state, following)), strict=True):
        assert before.dtype == after.dtype


@pytest.mark.nightly
def test_a_step_in_microbatches_equals_the_step(tiny, x64):
    states = []
    for parts in (1, 4):
        page = tiny(*x64, f"Experiment.microbatches={parts}", "Mesh.data=1", kind="moe")
        run = page.build().open()
        states.append(run.step(run.init(), run.put_batch(run.data.batch_at(0, 0)))[0])
    chex.assert_trees_all_close(*states, rtol=1e-10, atol=1e-14)


def test_dropout_depends_on_the_step_only(tiny):
    words = (HASHED, "Mesh.data=1", "Constant.peak_lr=0.0")
    run = tiny(*words, kind="dropout").build().open()
    batch = run.put_batch(run.data.batch_at(0, 0))
    state, first = run.step(run.init(), batch)
    _, second = run.step(state, batch)
    _, again = run.step(run.init(), batch)
    assert first["loss"] != second["loss"] and first["loss"] == again["loss"]


def test_rows_without_weight_have_no_gradient(tiny):
    recipe, params, batch, _ = opened(tiny, "dense")
    take = jax.jit(
        lambda b: compute_gradients(recipe.build_model, recipe.loss, params, b)
    )
    half = np.arange(8)[:, None] < 4
    light = batch._replace(weights=batch.weights * half)
    noise = np.where(half, light.tokens, (light.tokens + 3) % 8)
    chex.assert_trees_all_close(
        take(light), take(light._replace(tokens=noise)), atol=1e-6
    )
    none = take(batch._replace(weights=np.zeros_like(batch.weights)))
    assert all(not leaf.any() for leaf in jax.tree.leaves(none[0]))
    assert float(none[1].value) == 0.0


def test_a_model_learns_the_repeat_task_and_compiles_once(tiny):
    page = tiny("Experiment.steps=60", "Constant.peak_lr=0.02", "Mesh.data=1")
    run = page.build().open()
    losses = []
    train(
        run.step,
        run.init(),
        (run.put_batch(run.data.batch_at(0, step)) for step in range(60)),
        steps=60,
        hooks=[lambda done, state, metrics: losses.append(float(metrics["loss"]))],
    )
    assert len(losses) == 60 and losses[0] == pytest.approx(np.log(8), rel=0.6)
    assert losses[-1] < 0.8 * np.log(8)
    assert cached(run.step) == 1


def test_norms_agree_with_numpy_in_total_and_by_layer(tiny):
    params = nnx.split(tiny(HASHED).build().model(nnx.Rngs(0)))[1]
    whole, layers = compute_norms("param", params).values()
    square, by_layer = 0.0, np.zeros(2)
    for path, leaf in jax.tree.flatten_with_path(params)[0]:
        square += np.square(leaf, dtype=np.float64).sum()
        if "blocks" in str(path):
            by_layer += [np.square(leaf[i], dtype=np.float64).sum() for i in (0, 1)]
    assert whole == pytest.approx(np.sqrt(square), rel=1e-5)
    np.testing.assert_allclose(layers, np.sqrt(by_layer), rtol=1e-5)
    assert jnp.square(layers).sum() < jnp.square(whole)
