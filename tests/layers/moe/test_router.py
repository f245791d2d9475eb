"""Routers against the rules of their papers, token by token."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.layers.linear import EinsumBias
from lmx.layers.moe.router import (
    SigmoidRouter,
    SoftmaxRouter,
    TopKRouter,
    UnnormalizedSigmoidRouter,
)

B, T, D, E = 2, 5, 6, 8
KINDS = [TopKRouter, SoftmaxRouter, SigmoidRouter, UnnormalizedSigmoidRouter]
ONE = jnp.ones((B, T), int)  # one document per row
PADDED = ONE.at[0, 3:].set(0)


@jax.jit
def run(router, x, segments=ONE):
    return router(x, segments)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (B, T, D))


def best_indices(scores, count):
    return np.argsort(-scores, kind="stable")[:count]


def softmax_of_the_chosen(score, choices):
    chosen = best_indices(score, choices)
    share = np.exp(score[chosen])
    return chosen, share / share.sum()


def shares_of_a_softmax_of_all(score, choices):
    chosen = best_indices(score, choices)
    return chosen, (np.exp(score) / np.exp(score).sum())[chosen]


def sigmoids_within_groups(score, choices, bias, groups, group_top_k, scale):
    sigmoid = 1 / (1 + np.exp(-score))
    biased = (sigmoid + bias).reshape(groups, -1)
    two_best = np.sort(biased, axis=1)[:, -2:].sum(axis=1)
    kept = best_indices(two_best, group_top_k)
    left = [
        (g * E // groups + i, biased[g, i]) for g in kept for i in range(E // groups)
    ]
    left.sort(key=lambda pair: -pair[1])
    chosen = np.array([expert for expert, _ in left[:choices]])
    weights = sigmoid[chosen]
    return chosen, scale * weights / weights.sum()


def assert_agrees(router, x, rule):
    """Compares the router with a rule, token by token."""
    routing, _ = run(router, x)
    w, b = np.asarray(router.score.w[...]), getattr(router.score, "b", None)
    scores = np.asarray(x) @ w + (0.0 if b is None else np.asarray(b[...]))
    for at in np.ndindex(B, T):
        experts, weights = rule(scores[at])
        np.testing.assert_array_equal(routing.experts[at], experts)
        np.testing.assert_allclose(routing.weights[at], weights, rtol=1e-5)


@pytest.mark.parametrize("choices", [1, 3, E])
def test_top_k_weights_are_a_softmax_over_the_chosen_experts(init, x, choices):
    router = TopKRouter(D, E, init, top_k=choices)
    assert_agrees(router, x, partial(softmax_of_the_chosen, choices=choices))


def test_a_router_may_have_a_score_bias(init, x):
    router = TopKRouter(D, E, init, top_k=2, linear=EinsumBias)
    assert isinstance(router.score, EinsumBias)
    router.score.b.set_value(jnp.linspace(-1.0, 1.0, E))
    assert_agrees(router, x, partial(softmax_of_the_chosen, choices=2))


@pytest.mark.parametrize("choices", [1, 3, E])
def test_softmax_weights_are_probabilities_over_all_experts(init, x, choices):
    router = SoftmaxRouter(D, E, init, top_k=choices)
    assert_agrees(router, x, partial(shares_of_a_softmax_of_all, choices=choices))


def test_a_normalized_softmax_router_equals_top_k(init, x):
    shares, top = (kind(D, E, init, top_k=3) for kind in (SoftmaxRouter, TopKRouter))
    top.score = shares.score
    some, _ = run(shares, x)
    whole, _ = run(top, x)
    np.testing.assert_array_equal(some.experts, whole.experts)
    total = some.weights.sum(axis=-1, keepdims=True)
    assert (total < 1).all()
    np.testing.assert_allclose(some.weights / total, whole.weights, rtol=1e-5)


def make_sigmoid(init, **options):
    router = SigmoidRouter(D, E, init, top_k=2, scale=2.5, **options)
    bias = np.random.default_rng(0).normal(size=E) / 2
    router.bias.set_value(jnp.asarray(bias, "float32"))
    return router, np.asarray(router.bias[...])


@pytest.mark.parametrize("groups, group_choices", [(1, 1), (2, 1), (4, 2), (4, 4)])
def test_sigmoid_router_chooses_within_the_best_groups_by_biased_score(
    init, x, groups, group_choices
):
    router, bias = make_sigmoid(init, groups=groups, group_top_k=group_choices)
    options = dict(groups=groups, group_top_k=group_choices)
    assert_agrees(
        router,
        x,
        partial(sigmoids_within_groups, choices=2, bias=bias, scale=2.5, **options),
    )


def test_a_normalized_unnormalized_router_equals_the_sigmoid_router(init, x):
    sigmoid, _ = make_sigmoid(init, groups=2)
    plain = UnnormalizedSigmoidRouter(D, E, init, top_k=2, scale=2.5, groups=2)
    plain.score, plain.bias = sigmoid.score, sigmoid.bias
    raw, _ = run(plain, x)
    summed, _ = run(sigmoid, x)
    np.testing.assert_array_equal(raw.experts, summed.experts)
    shares = raw.weights / raw.weights.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(2.5 * shares, summed.weights, rtol=1e-5)


def test_unnormalized_weights_are_the_scores(init, x):
    router = UnnormalizedSigmoidRouter(D, E, init, top_k=2, scale=2.5)
    routing, _ = run(router, x)
    scores = 1 / (1 + np.exp(-np.asarray(x) @ np.asarray(router.score.w[...])))
    want = 2.5 * -np.sort(-scores, axis=-1)[..., :2]
    np.testing.assert_allclose(routing.weights, want, rtol=1e-5)


def test_choosing_all_groups_equals_no_groups(init, x):
    alone, _ = make_sigmoid(init)
    grouped, _ = make_sigmoid(init, groups=4, group_top_k=4)
    grouped.score = alone.score
    jax.tree.map(np.testing.assert_array_equal, run(alone, x), run(grouped, x))


def test_the_router_bias_affects_choices_and_not_weights(init, x):
    router = SigmoidRouter(D, E, init, top_k=E)
    even, _ = run(router, x)
    router.bias.set_value(jnp.linspace(9.0, -9.0, E))
    odd, _ = run(router, x)
    assert (odd.experts == jnp.arange(E)[None, None]).all()
    again = jnp.take_along_axis(odd.weights, even.experts, axis=-1)
    np.testing.assert_allclose(again, even.weights, rtol=1e-6)


def test_only_the_load_loss_updates_the_router_bias(init, x):
    router, _ = make_sigmoid(init)

    def outputs(router):
        routing, aux = router(x, ONE)
        return (
            jnp.square(routing.weights).sum(),
            aux["balance"].total,
            aux["load"].total,
        )

    def grads(router):
        values, back = jax.vjp(outputs, router)
        return [back(tuple(row * jnp.ones_like(values[0])))[0] for row in jnp.eye(3)]

    weights, balance, load = jax.jit(grads)(router)
    assert weights.score.w[...].any() and balance.score.w[...].any()
    assert not weights.bias[...].any() and not balance.bias[...].any()
    assert load.bias[...].any() and not load.score.w[...].any()


@pytest.mark.parametrize("kind", KINDS)
def test_no_auxiliary_loss_counts_padding(init, x, kind):
    router = kind(D, E, init, top_k=2)
    noise = jnp.where(PADDED[:, :, None] > 0, 0.0, 9.0)
    _, aux = run(router, x, PADDED)
    _, changed = run(router, x + noise, PADDED)
    _, none = run(router, x, jnp.zeros_like(ONE))
    for name, mean in aux.items():
        np.testing.assert_allclose(mean, changed[name], rtol=1e-6)
        assert mean.weight == (PADDED > 0).sum()
        assert none[name].total == 0 and none[name].value == 0


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_scored_in_float32(init, x, kind):
    router, low = kind(D, E, init, top_k=2), x.astype("bfloat16")
    got, aux = run(router, low)
    want, _ = run(router, low.astype("float32"))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert aux["balance"].total.dtype == "float32"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("choices", [E + 1])
def test_top_k_outside_the_number_of_experts_is_refused(init, kind, choices):
    options = rf"cannot choose {choices} of {E} experts: {kind.__name__}\.top_k"
    with pytest.raises(ValueError, match=options):
        kind(D, E, init, top_k=choices)


@pytest.mark.parametrize(
    "options, why",
    [
        (dict(groups=3), "8 experts do not form 3 groups"),
        (dict(groups=8), "groups of 2 or more"),
        (dict(groups=2, group_top_k=3), "within 3 of 2 groups of 4"),
        (dict(groups=4, group_top_k=1, top_k=3), "cannot choose 3 experts within"),
    ],
)
def test_invalid_groups_are_refused(init, options, why):
    with pytest.raises(ValueError, match=why):
        SigmoidRouter(D, E, init, **dict(top_k=2) | options)


def test_a_router_bias_has_its_own_update_rate(init):
    bias = SigmoidRouter(D, E, init, top_k=2, bias_update_rate=0.5).bias
    assert isinstance(bias, nnx.Param) and not bias[...].any()
    assert (bias.axes, bias.in_dims, bias.sign_rate) == (("experts",), (), 0.5)


def test_a_router_bias_is_at_least_float32(init):
    router = SigmoidRouter(D, E, replace(init, dtype="bfloat16"), top_k=2)
    assert (router.score.w[...].dtype, router.bias.dtype) == ("bfloat16", "float32")
