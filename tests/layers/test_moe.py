"""No token is dropped, and nobody can tell that tokens were sorted."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.core.mean import Mean
from lmx.layers import moe
from lmx.layers.moe import MoE, TopK

balance, router_z = jax.jit(moe.balance), jax.jit(moe.router_z)
top_k = jax.jit(moe.top_k, static_argnums=1)

B, T, D, E, F = 3, 7, 8, 4, 6
LIVE = jnp.ones((B, T), bool)
PADDED = LIVE.at[0, 4:].set(False).at[1].set(False)


@pytest.fixture
def make(init):
    def make(choices=2):
        return MoE(D, init, experts=E, hidden=F, router=partial(TopK, choices=choices))

    return make


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (B, T, D))


@jax.jit
def run(layer, x, live=LIVE):
    return layer(x, live)


def make_logits(seed=0):
    logits = jax.random.normal(jax.random.key(seed), (B, T, E))
    return logits, top_k(logits, 2).experts


def one_token_at_a_time(layer, x, routing):
    gate, up, down = (np.asarray(w[...]) for w in (layer.gate, layer.up, layer.down))
    y = np.zeros(x.shape, np.float32)
    for b, t in np.ndindex(B, T):
        for e, share in zip(routing.experts[b, t], routing.weights[b, t], strict=True):
            gated = x[b, t] @ gate[e]
            hidden = gated / (1 + np.exp(-gated)) * (x[b, t] @ up[e])
            y[b, t] += share * hidden @ down[e]
    return y


def balance_one_row_at_a_time(logits, experts, live):
    total = 0.0
    for row, chosen, seen in zip(logits, experts, live, strict=True):
        probs = np.exp(row) / np.exp(row).sum(axis=-1, keepdims=True)
        if seen.any():
            choices = chosen[seen].ravel()
            share = np.bincount(choices, minlength=E) / len(choices)
            total += E * share @ probs[seen].mean(axis=0) * seen.sum()
    return total, live.sum()


@pytest.mark.parametrize("choices", [1, 2, E])
def test_agrees_with_one_token_at_a_time(make, x, choices):
    layer = make(choices)
    routing, _ = run(layer.router, x)
    want = one_token_at_a_time(layer, *jax.tree.map(np.asarray, (x, routing)))
    np.testing.assert_allclose(run(layer, x)[0], want, atol=1e-5)


def test_no_token_is_dropped_when_all_want_one_expert(make, x):
    layer = make(choices=1)
    layer.router.score.w = nnx.Param(jnp.zeros((D, E)))  # a tie: everyone picks 0
    routing, aux = run(layer.router, x)
    assert not routing.experts.any()
    assert (jnp.abs(run(layer, x)[0]).sum(axis=-1) > 0).all()
    assert aux["balance"].value == pytest.approx(1.0)  # probabilities are even


def test_other_tokens_do_not_change_an_answer(make, x):
    layer = make()
    changed = x.at[:, 3:].add(jax.random.normal(jax.random.key(2), (B, T - 3, D)))
    before, after = run(layer, x)[0], run(layer, changed)[0]
    np.testing.assert_allclose(before[:, :3], after[:, :3], atol=1e-6)


def test_the_names_of_experts_do_not_matter(make, x):
    layer, order = make(), jnp.array([2, 0, 3, 1])
    before, _ = run(layer, x)
    for name in ("gate", "up", "down"):
        setattr(layer, name, nnx.Param(getattr(layer, name)[...][order]))
    layer.router.score.w = nnx.Param(layer.router.score.w[...][:, order])
    np.testing.assert_allclose(run(layer, x)[0], before, atol=1e-6)


def test_the_weights_of_a_tokens_choices_sum_to_one():
    routing = top_k(make_logits()[0], 3)
    np.testing.assert_allclose(routing.weights.sum(axis=-1), 1.0, rtol=1e-6)
    assert (jnp.diff(routing.weights, axis=-1) <= 0).all()  # the best first


def test_balance_agrees_with_one_row_at_a_time():
    logits, experts = make_logits()
    for live in (LIVE, PADDED):
        want = balance_one_row_at_a_time(*map(np.asarray, (logits, experts, live)))
        np.testing.assert_allclose(balance(logits, experts, live), want, rtol=1e-5)


def test_balance_is_one_when_even_and_all_experts_when_not():
    live = jnp.ones((1, E), bool)
    even = 1e3 * jnp.eye(E)[None]  # token t wants expert t and no other
    one_each = balance(even, jnp.arange(E)[None, :, None], live)
    assert one_each.value == pytest.approx(1.0)
    odd = jnp.broadcast_to(1e3 * jnp.eye(E)[0], (1, E, E))
    all_one = balance(odd, jnp.zeros((1, E, 1), int), live)
    assert all_one.value == pytest.approx(E)


def test_router_z_is_the_squared_log_of_the_denominator():
    logits, _ = make_logits()
    z = np.log(np.exp(np.asarray(logits)).sum(axis=-1)) ** 2
    for live in (LIVE, PADDED):
        want = z[np.asarray(live)].sum(), live.sum()
        np.testing.assert_allclose(router_z(logits, live), want, rtol=1e-5)


@pytest.mark.parametrize("live", [LIVE, PADDED], ids=["full", "padded"])
def test_the_losses_of_rows_add_up_exactly(live):
    """So that microbatches and devices cannot change them."""
    with jax.enable_x64(True):
        logits, experts = make_logits()
        wide = logits.astype("float64")

        def losses(rows):
            z = router_z(wide[rows], live[rows])
            return balance(wide[rows], experts[rows], live[rows]), z

        @jax.jit
        def parts_and_whole():
            parts = losses(slice(0, 1)), losses(slice(1, 3))
            return jax.tree.map(jnp.add, *parts), losses(slice(0, 3))

        for part, whole in zip(*parts_and_whole(), strict=True):
            np.testing.assert_allclose(part, whole, rtol=1e-12)


def test_no_auxiliary_loss_counts_padding(make, x):
    layer = make()
    noise = jnp.where(PADDED[:, :, None], 0.0, 9.0)
    _, aux = run(layer, x, PADDED)
    _, changed = run(layer, x + noise, PADDED)
    for name, mean in aux.items():
        np.testing.assert_allclose(mean, changed[name], rtol=1e-6)
        assert mean.weight == PADDED.sum()


def test_nothing_live_has_no_loss(make, x):
    _, aux = run(make(), x, jnp.zeros_like(LIVE))
    assert all(mean.total == 0 and mean.value == 0 for mean in aux.values())


def test_every_expert_that_was_chosen_learns(make, x):
    layer = make(choices=1)

    def loss(layer):
        return jnp.square(layer(x, LIVE)[0]).sum()

    grads = jax.jit(jax.grad(loss))(layer)
    chosen = set(np.asarray(run(layer.router, x)[0].experts).ravel())
    assert len(chosen) > 1
    for grad in (grads.gate, grads.up, grads.down):
        learns = np.abs(grad[...]).sum(axis=(1, 2)) > 0
        assert set(np.flatnonzero(learns)) == chosen


def test_the_router_learns_from_the_answer_and_from_each_loss(make, x):
    def losses(layer):
        y, aux = layer(x, LIVE)
        return jnp.square(y).sum(), *(aux[name].total for name in sorted(aux))

    def grads(layer):
        values, back = jax.vjp(losses, layer)
        one = jnp.ones_like(values[0])
        return [back(tuple(row * one))[0] for row in jnp.eye(3)]

    for grad in jax.jit(grads)(make()):
        assert jnp.abs(grad.router.score.w[...]).sum() > 0


def test_bfloat16_is_scored_in_float32(make, x):
    layer = make()
    y, aux = run(layer, x.astype("bfloat16"))
    want, _ = run(layer.router, x.astype("bfloat16").astype("float32"))
    got, _ = run(layer.router, x.astype("bfloat16"))
    np.testing.assert_array_equal(got.experts, want.experts)
    np.testing.assert_array_equal(got.weights, want.weights)
    assert y.dtype == jnp.bfloat16
    assert isinstance(aux["balance"], Mean) and aux["balance"].total.dtype == "float32"


@pytest.mark.parametrize("choices", [0, 5])
def test_more_choices_than_experts_or_none_are_refused(make, choices):
    with pytest.raises(ValueError, match=f"cannot choose {choices} of 4 experts"):
        make(choices)


def test_the_second_call_does_not_recompile(make, x):
    call = jax.jit(chex.assert_max_traces(lambda layer, x, live: layer(x, live), n=1))
    for live in (LIVE, PADDED):
        call(make(), x, live)
