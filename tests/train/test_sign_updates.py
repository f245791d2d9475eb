"""Router biases are updated by the sign of their load."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.layers.init import FanIn, Init
from lmx.layers.moe.router import SigmoidRouter
from lmx.train.optim import optimizer as optim

E, RATE = 4, 0.05
STILL = (
    "Mesh.data=1",
    "Constant.peak_lr=0.0",
    f"SigmoidRouter.bias_update_rate={RATE}",
    "SigmoidRouter.groups=1",
)


@pytest.fixture(scope="module")
def run(tiny):
    """An experiment that trains only biases."""
    return tiny(*STILL, kind="sigmoid").build().open()


def bias(params):
    """The biases of all layers."""
    flat = nnx.to_flat_state(params)
    [found] = [p for path, p in flat if path[-2:] == ("router", "bias")]
    return found


@pytest.fixture(scope="module")
def count_loads(run):
    """Counts the tokens of each expert of each layer inside the model."""
    seen, route = [], SigmoidRouter.route

    def record_route(router, scores, bias):
        routing = route(router, scores, bias)
        jax.debug.callback(seen.append, routing.experts, ordered=True)
        return routing

    model = jax.jit(lambda p, tokens: nnx.merge(run.graph, p)(tokens))

    def count_loads(params, batch):
        seen.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SigmoidRouter, "route", record_route)
            model(params, batch.tokens)
            jax.effects_barrier()
        return np.stack([np.bincount(np.ravel(e), minlength=E) for e in seen])

    return count_loads


def after(run, state):
    """The state after one more step, and its metrics."""
    return run.step(state, run.put_batch(run.data.batch_at(run.seed, int(state.step))))


def test_a_step_moves_each_bias_by_the_sign_of_its_load(run, count_loads):
    counts = count_loads(run.init().params, run.data.batch_at(run.seed, 0))
    assert counts.shape == (2, E) and counts.std() > 0
    moved = bias(after(run, run.init())[0].params)[...]
    want = RATE * np.sign(counts.mean(axis=1, keepdims=True) - counts)
    np.testing.assert_allclose(moved, want, rtol=1e-6)


def test_biases_balance_a_skewed_router(run, count_loads):
    state, batch = run.init(), run.data.batch_at(run.seed, 0)
    skewed = jnp.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    bias(state.params).set_value(skewed)
    before = count_loads(state.params, batch)
    assert before.max() == batch.tokens.size  # everyone chooses some of them
    for _ in range(40):
        state, _ = after(run, state)
    even = batch.tokens.size * 2 / E
    assert np.abs(count_loads(state.params, batch) - even).max() < 0.5 * even


@pytest.mark.nightly
def test_the_weight_of_the_load_changes_nothing(run, tiny):
    """Neither clipping nor gradient norms include it."""
    more = "NextToken.aux={'balance': 0.01, 'load': 64.0}"
    other = tiny(*STILL, more, kind="sigmoid").build().open()
    chex.assert_trees_all_equal(after(run, run.init()), after(other, other.init()))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_parameters_with_a_sign_rate_step_by_it_and_others_do_not_change(rate):
    init = Init(nnx.Rngs(0), FanIn(), depth=2)
    params = nnx.State({"gain": init.full("D", {"D": 3}, 1.0)})
    params["bias"] = SigmoidRouter(3, 4, init, top_k=1, bias_update_rate=rate).bias
    grads = jax.tree.map(lambda p: jnp.arange(p.size) - 1.0, params)
    updates = jax.tree.map(lambda g: 7.0 * g, grads)
    stepped, quiet = (
        optim.apply_sign_updates(updates, grads),
        optim.zero_sign_grads(grads),
    )
    for name, want in {"gain": grads["gain"][...], "bias": jnp.zeros(4)}.items():
        np.testing.assert_array_equal(quiet[name][...], want)
    np.testing.assert_array_equal(stepped["gain"][...], updates["gain"][...])
    np.testing.assert_array_equal(stepped["bias"][...], rate * np.array([1, 0, -1, -1]))
