"""The first tensor that is not finite, where a test has put it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.analysis.nonfinite import check_finite, describe_checks
from lmx.core import rng

pytestmark = pytest.mark.faults

PARTS = ["Mesh.data=1", "Experiment.microbatches=2", "NextToken.chunk=8"]


@pytest.fixture(scope="module")
def program(tiny):
    run = tiny(*PARTS, "Decoder.depth=3").build().open()
    params = jax.tree.map(np.array, run.init().params)
    return run, params, run.data.batch_at(0, 0), {}


def locate(program, change=lambda params: params, batch=None, loss=None):
    run, params, clean, compiled = program
    config = run.step_config._replace(**dict(loss=loss) if loss else {})
    check = compiled.setdefault(loss, jax.jit(partial(check_finite, config)))
    params = change(jax.tree.map(np.copy, params))
    rows = batch or clean
    results = [check(params, rows, rng.fold(0, 0, "dropout", len(rows.tokens)))]
    return describe_checks(results)


def put(module, weight, layer, value):
    """Changes one element of a weight of a layer."""

    def change(params):
        w = params["stack"]["cycles"][0]["blocks"][0][module][weight]["w"][...]
        w[layer].flat[0] = value
        return params

    return change


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (put("mlp", "up", 1, np.inf), "parameter stack.cycles.0.blocks.0.mlp.up.w"),
        (put("attention", "v", 1, 3e38), "attention.v"),
        (put("mlp", "up", 1, 3e38), "mlp.hidden"),
    ],
)
def test_it_is_named_with_the_first_layer_that_has_it(program, change, name):
    """Huge parameters are finite; what is computed with them is not."""
    assert locate(program, change).startswith(
        f"The first tensor that is not finite: {name}"
    )
    assert " of layer 1." in locate(program, change)


def test_a_finite_step_and_one_with_infinite_weights_of_targets(program):
    assert "All parameters, activations and gradients" in locate(program)
    weights = program[2].weights.copy()
    weights[3, 5] = np.inf
    batch = program[2]._replace(weights=weights)
    assert locate(program, batch=batch).endswith("not finite: loss.")


def test_a_gradient_alone_is_named_from_the_last_layer_backwards(program):
    """The gradient of a square root at 0, of hidden states only."""

    def loss(model, batch, keys):
        x, _ = model.hidden_states(batch.tokens, batch.positions, batch.segments, keys)
        real, means = program[0].step_config.loss(model, batch, keys)
        return real._replace(total=real.total + jnp.sqrt(0.0 * x.sum())), means

    found = locate(program, loss=loss)
    assert found == "The first tensor that is not finite: gradient norm.scale."
