"""What a router tells the loss agrees with one row at a time, and rows add up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.layers.moe import loss

balance, router_z = jax.jit(loss.balance), jax.jit(loss.router_z)

B, T, E, C = 3, 7, 4, 2
LIVE = jnp.ones((B, T), bool)
PADDED = LIVE.at[0, 4:].set(False).at[1].set(False)
MASKS = pytest.mark.parametrize("live", [LIVE, PADDED], ids=["full", "padded"])


def make_logits(dtype="float32"):
    logits = jax.random.normal(jax.random.key(0), (B, T, E)).astype(dtype)
    return logits, jax.nn.softmax(logits), jax.lax.top_k(logits, C)[1]


def balance_one_row_at_a_time(probs, experts, live):
    total = 0.0
    for row, chosen, seen in zip(probs, experts, live, strict=True):
        if seen.any():
            choices = chosen[seen].ravel()
            share = np.bincount(choices, minlength=E) / len(choices)
            total += E * share @ row[seen].mean(axis=0) * seen.sum()
    return total, live.sum()


@MASKS
def test_balance_agrees_with_one_row_at_a_time(live):
    _, probs, experts = make_logits()
    want = balance_one_row_at_a_time(*map(np.asarray, (probs, experts, live)))
    np.testing.assert_allclose(balance(probs, experts, live), want, rtol=1e-5)


def test_balance_is_one_when_even_and_all_experts_when_not():
    live = jnp.ones((1, E), bool)
    even = jnp.eye(E)[None]  # token t wants expert t and no other
    one_each = balance(even, jnp.arange(E)[None, :, None], live)
    assert one_each.value == pytest.approx(1.0)
    odd = jnp.broadcast_to(jnp.eye(E)[0], (1, E, E))
    all_one = balance(odd, jnp.zeros((1, E, 1), int), live)
    assert all_one.value == pytest.approx(E)


@MASKS
def test_router_z_is_the_squared_log_of_the_denominator(live):
    logits, _, _ = make_logits()
    z = np.log(np.exp(np.asarray(logits)).sum(axis=-1)) ** 2
    want = z[np.asarray(live)].sum(), live.sum()
    np.testing.assert_allclose(router_z(logits, live), want, rtol=1e-5)


@MASKS
def test_load_is_nothing_but_a_gradient_of_each_experts_excess(live):
    _, _, experts = make_logits()
    bias = jnp.array([0.1, -0.2, 0.3, 0.0])
    take = jax.jit(jax.value_and_grad(lambda b: loss.load(b, experts, live).total))
    value, grad = take(bias)
    chosen = np.asarray(experts)[np.asarray(live)]
    loads = np.bincount(chosen.ravel(), minlength=E)
    assert value == 0.0 and len(set(loads)) > 1
    np.testing.assert_allclose(grad, E * (loads - loads.mean()), atol=1e-5)


@MASKS
def test_the_losses_of_rows_add_up_exactly(live):
    """So that microbatches and devices cannot change them."""
    with jax.enable_x64(True):
        logits, probs, experts = make_logits("float64")
        bias = jnp.zeros(E)

        def losses(rows):
            def load(bias):
                return loss.load(bias, experts[rows], live[rows]).total

            return (
                loss.router_z(logits[rows], live[rows]),
                loss.balance(probs[rows], experts[rows], live[rows]),
                jax.grad(load)(bias),
            )

        @jax.jit
        def parts_and_whole():
            parts = losses(slice(0, 1)), losses(slice(1, 3))
            return jax.tree.map(jnp.add, *parts), losses(slice(0, 3))

        for part, whole in zip(*parts_and_whole(), strict=True):
            np.testing.assert_allclose(part, whole, rtol=1e-12)
