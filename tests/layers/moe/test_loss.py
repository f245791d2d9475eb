"""Auxiliary losses of routers against a loop over documents; documents add up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.layers.moe import router as loss

balance, router_z = jax.jit(loss.balance_loss), jax.jit(loss.router_z_loss)

B, T, E, C = 3, 7, 4, 2
ONE = jnp.ones((B, T), int)  # one document per row
PADDED = ONE.at[0, 4:].set(0).at[1].set(0)
PACKED = ONE.at[0, 4:].set(2).at[1, 2:].set(9).at[1, 6:].set(0).at[2, 1:].set(2)
ROWS = pytest.mark.parametrize(
    "segments", [ONE, PADDED, PACKED], ids=["full", "padded", "packed"]
)


def make_logits(dtype="float32"):
    logits = jax.random.normal(jax.random.key(0), (B, T, E)).astype(dtype)
    return logits, jax.nn.softmax(logits), jax.lax.top_k(logits, C)[1]


def balance_one_document_at_a_time(probs, experts, segments):
    total = 0.0
    for row, chosen, document in zip(probs, experts, segments, strict=True):
        for name in set(document) - {0}:
            its = document == name
            choices = chosen[its].ravel()
            share = np.bincount(choices, minlength=E) / len(choices)
            total += E * share @ row[its].mean(axis=0) * its.sum()
    return total, (segments > 0).sum()


@ROWS
def test_balance_agrees_with_one_document_at_a_time(segments):
    _, probs, experts = make_logits()
    want = balance_one_document_at_a_time(*map(np.asarray, (probs, experts, segments)))
    np.testing.assert_allclose(balance(probs, experts, segments), want, rtol=1e-5)


@jax.jit
def balance_and_slope(probs, experts, segments):
    return jax.value_and_grad(lambda p: loss.balance_loss(p, experts, segments).total)(
        probs
    )


def test_packing_does_not_change_the_balance_loss():
    with jax.enable_x64(True):
        _, probs, experts = make_logits("float64")
        packed, slope = balance_and_slope(probs, experts, PACKED)
        total, slopes = 0.0, 0.0
        for name in (1, 2, 9):
            part, sloped = balance_and_slope(probs, experts, PACKED * (PACKED == name))
            total, slopes = total + part, slopes + sloped
        np.testing.assert_allclose(packed, total, rtol=1e-12)
        np.testing.assert_allclose(slope, slopes, rtol=1e-12)


def test_balance_is_one_when_even_and_all_experts_when_not():
    one = jnp.ones((1, E), int)
    even = jnp.eye(E)[None]  # token t chooses expert t
    one_each = balance(even, jnp.arange(E)[None, :, None], one)
    assert one_each.value == pytest.approx(1.0)
    odd = jnp.broadcast_to(jnp.eye(E)[0], (1, E, E))
    all_one = balance(odd, jnp.zeros((1, E, 1), int), one)
    assert all_one.value == pytest.approx(E)


@ROWS
def test_router_z_is_the_squared_log_of_the_denominator(segments):
    logits, _, _ = make_logits()
    z = np.log(np.exp(np.asarray(logits)).sum(axis=-1)) ** 2
    want = z[np.asarray(segments) > 0].sum(), (segments > 0).sum()
    np.testing.assert_allclose(router_z(logits, segments > 0), want, rtol=1e-5)


@ROWS
def test_the_load_loss_is_zero_and_its_gradient_the_overload(segments):
    _, _, experts = make_logits()
    bias = jnp.array([0.1, -0.2, 0.3, 0.0])
    take = jax.jit(
        jax.value_and_grad(
            lambda b: loss.load_bias_loss(b, experts, segments > 0).total
        )
    )
    value, grad = take(bias)
    chosen = np.asarray(experts)[np.asarray(segments) > 0]
    loads = np.bincount(chosen.ravel(), minlength=E)
    assert value == 0.0 and len(set(loads)) > 1
    np.testing.assert_allclose(grad, E * (loads - loads.mean()), atol=1e-5)


@ROWS
def test_the_losses_of_rows_add_up_exactly(segments):
    """So that microbatches and devices cannot change them."""
    with jax.enable_x64(True):
        logits, probs, experts = make_logits("float64")
        bias, unpadded = jnp.zeros(E), segments > 0

        def losses(rows):
            def load(bias):
                return loss.load_bias_loss(bias, experts[rows], unpadded[rows]).total

            return (
                loss.router_z_loss(logits[rows], unpadded[rows]),
                loss.balance_loss(probs[rows], experts[rows], segments[rows]),
                jax.grad(load)(bias),
            )

        @jax.jit
        def parts_and_whole():
            parts = losses(slice(0, 1)), losses(slice(1, 3))
            return jax.tree.map(jnp.add, *parts), losses(slice(0, 3))

        for part, whole in zip(*parts_and_whole(), strict=True):
            np.testing.assert_allclose(part, whole, rtol=1e-12)
