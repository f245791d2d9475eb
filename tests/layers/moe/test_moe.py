"""Contract of MoE layers, and each against a loop over tokens."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.layers.linear import EinsumBias
from lmx.layers.mlp import SwiGLU
from lmx.layers.moe.dispatch import CapacityDispatch
from lmx.layers.moe.moe import ClampedMoE, ExpertChoice, MoE
from lmx.layers.moe.router import SigmoidRouter, SoftmaxRouter, TopKRouter

B, T, D, E, F = 3, 7, 8, 4, 6
ONE = jnp.ones((B, T), int)  # one document per row
PADDED = ONE.at[0, 4:].set(0).at[1].set(0)

TOP = partial(TopKRouter, top_k=2)
KINDS = {
    "top 1": partial(MoE, router=partial(TopKRouter, top_k=1)),
    "top 2": partial(MoE, router=TOP),
    "top of all": partial(MoE, router=partial(TopKRouter, top_k=E)),
    "softmax": partial(MoE, router=partial(SoftmaxRouter, top_k=2)),
    "sigmoid": partial(
        MoE, router=partial(SigmoidRouter, top_k=2, groups=2, scale=2.5)
    ),
    "shared": partial(MoE, router=TOP, shared=partial(SwiGLU, hidden=F)),
    "clamped": partial(
        ClampedMoE, router=partial(TopKRouter, top_k=2, linear=EinsumBias)
    ),
    "close": partial(ClampedMoE, router=TOP, limit=0.5, alpha=3.0),
    "capacity": partial(
        MoE, router=TOP, dispatch=CapacityDispatch(capacity_factor=0.75)
    ),
    "clamped capacity": partial(
        ClampedMoE, router=TOP, dispatch=CapacityDispatch(capacity_factor=0.5)
    ),
    "expert choice": partial(ExpertChoice, capacity_factor=2),
}
ALL = pytest.mark.parametrize("kind", KINDS)
CAUSAL = pytest.mark.parametrize("kind", [k for k in KINDS if k != "expert choice"])


@pytest.fixture
def make(init):
    """A layer of that kind with random biases."""

    def make(kind):
        layer = KINDS[kind](D, init, experts=E, hidden=F)
        noise = np.random.default_rng(1)
        for path, p in nnx.to_flat_state(nnx.state(layer, nnx.Param)):
            if not p.in_dims and path[-1] != "bias":
                p.set_value(jnp.asarray(noise.normal(size=p.shape), "float32"))
        return layer

    return make


@pytest.fixture
def x():
    return 3 * jax.random.normal(jax.random.key(1), (B, T, D))


@jax.jit
def run(layer, x, segments=ONE):
    return layer(x, segments)


def swiglu(w, x):
    gate = x @ w["gate"]
    return gate / (1 + np.exp(-gate)) * (x @ w["up"]) @ w["down"]


def clamped(w, limit, slope, x):
    gate = np.minimum(x @ w["gate"] + w["gate_b"], limit)
    up = np.clip(x @ w["up"] + w["up_b"], -limit, limit)
    return (up + 1) * gate / (1 + np.exp(-slope * gate)) @ w["down"] + w["down_b"]


def expert(layer, e):
    """Expert `e` as a function of a vector."""
    names = ("gate", "up", "down", "gate_b", "up_b", "down_b")
    w = {n: np.asarray(getattr(layer, n)[e]) for n in names if hasattr(layer, n)}
    if "gate_b" in w:
        return partial(clamped, w, layer.limit, layer.alpha)
    return partial(swiglu, w)


def choices(layer, x, unpadded):
    """The experts of each token: (row, position, expert, weight)."""
    if isinstance(layer, ExpertChoice):
        yield from choices_of_experts(layer, x, unpadded)
        return
    routing = jax.tree.map(np.asarray, run(layer.router, x, unpadded.astype(int))[0])
    factor = getattr(layer.dispatch, "capacity_factor", None)
    for b in range(B):
        room = factor and np.ceil(factor * unpadded[b].sum() * layer.router.top_k / E)
        taken = np.zeros(E, int)
        for t in range(T):
            pairs = zip(routing.experts[b, t], routing.weights[b, t], strict=True)
            for e, weight in pairs if factor is None or unpadded[b, t] else ():
                taken[e] += 1
                if factor is None or taken[e] <= room:
                    yield b, t, e, weight


def choices_of_experts(layer, x, unpadded):
    score = np.exp(x @ np.asarray(layer.score.w[...]))
    score /= score.sum(axis=-1, keepdims=True)
    for b, e in np.ndindex(B, E):
        alive = np.flatnonzero(unpadded[b])
        room = int(np.ceil(len(alive) * layer.active_fraction))
        for t in alive[np.argsort(-score[b, alive, e])[:room]]:
            yield b, t, e, score[b, t, e]


def one_token_at_a_time(layer, x, unpadded):
    y = np.zeros(x.shape, np.float32)
    for b, t, e, weight in choices(layer, x, unpadded):
        y[b, t] += weight * expert(layer, e)(x[b, t])
    if layer.shared:
        w = {
            n: np.asarray(getattr(layer.shared, n).w[...])
            for n in ("gate", "up", "down")
        }
        y += swiglu(w, x)
    return y


@ALL
@pytest.mark.parametrize("segments", [ONE, PADDED], ids=["full", "padded"])
def test_agrees_with_one_token_at_a_time(make, x, kind, segments):
    layer = make(kind)
    want = one_token_at_a_time(layer, np.asarray(x), np.asarray(segments > 0))
    y, _ = run(layer, x, segments)
    np.testing.assert_allclose(y, want, atol=3e-5 * np.abs(want).max())


@CAUSAL
def test_the_future_does_not_reach_the_past(make, x, kind):
    layer = make(kind)
    changed = x.at[:, 3:].add(jax.random.normal(jax.random.key(2), (B, T - 3, D)))
    before, after = run(layer, x)[0], run(layer, changed)[0]
    assert layer.causal
    np.testing.assert_allclose(before[:, :3], after[:, :3], atol=1e-4)


def test_expert_choice_is_not_causal(make, x):
    layer = make("expert choice")
    changed = x.at[:, 3:].multiply(3.0)
    before, after = run(layer, x)[0], run(layer, changed)[0]
    assert not layer.causal and jnp.abs(before - after)[:, :3].max() > 1e-3


@ALL
def test_padding_changes_nothing(make, x, kind):
    """Neither its content nor its amount."""
    layer, segments = make(kind), ONE.at[0, 5:].set(0)
    y, aux = run(layer, x, segments)
    noise = jnp.where(segments[:, :, None] > 0, 0.0, 9.0)
    wide = jnp.pad(x + noise, ((0, 0), (0, 4), (0, 0)), constant_values=1.0)
    other, more = run(layer, wide, jnp.pad(segments, ((0, 0), (0, 4))))
    np.testing.assert_allclose(y[0, :5], other[0, :5], atol=1e-4)
    np.testing.assert_allclose(y[1:], other[1:, :T], atol=1e-4)
    chex.assert_trees_all_close(aux, more, rtol=1e-5)


@ALL
def test_rows_do_not_mix(make, x, kind):
    layer = make(kind)
    whole = run(layer, x, PADDED)[0]
    for b in range(B):
        alone = run(layer, x[b : b + 1], PADDED[b : b + 1])[0]
        np.testing.assert_allclose(alone[0], whole[b], atol=1e-4)


@ALL
def test_the_order_of_experts_does_not_matter(make, x, kind):
    layer, order = make(kind), jnp.array([1, 0, 3, 2])  # which keeps groups of 2
    before, _ = run(layer, x)
    for _, p in nnx.to_flat_state(nnx.state(layer, nnx.Param)):
        if "experts" in p.axes:
            axis = p.axes.index("experts")
            p.set_value(jnp.take(p[...], order, axis))
    np.testing.assert_allclose(run(layer, x)[0], before, atol=1e-4)


@ALL
def test_every_weight_has_a_gradient(make, x, kind):
    def loss(layer):
        y, aux = layer(x, ONE)
        return jnp.square(y).sum() + sum(mean.total for mean in aux.values())

    for grad in jax.tree.leaves(jax.jit(jax.grad(loss))(make(kind))):
        assert jnp.isfinite(grad).all() and jnp.abs(grad).sum() > 0


@ALL
def test_it_computes_in_the_dtype_of_its_input(make, x, kind):
    y, aux = run(make(kind), x.astype("bfloat16"))
    assert y.dtype == "bfloat16"
    assert all(mean.total.dtype == "float32" for mean in aux.values())


@ALL
def test_the_second_call_does_not_recompile(make, x, kind):
    call = jax.jit(
        chex.assert_max_traces(lambda layer, x, segments: layer(x, segments), n=1)
    )
    for segments in (ONE, PADDED):
        call(make(kind), x, segments)


def test_no_token_is_dropped_when_all_want_one_expert(make, x):
    layer = make("top 1")
    layer.router.score.w.set_value(
        jnp.zeros((D, E))
    )  # a tie: all tokens choose expert 0
    routing, aux = run(layer.router, x)
    assert not routing.experts.any()
    assert (jnp.abs(run(layer, x)[0]).sum(axis=-1) > 0).all()
    assert aux["balance"].value == pytest.approx(1.0)  # equal probabilities


def test_only_chosen_experts_have_a_gradient(make, x):
    layer = make("top 1")
    grads = jax.jit(jax.grad(lambda layer: jnp.square(layer(x, ONE)[0]).sum()))(layer)
    chosen = set(np.asarray(run(layer.router, x)[0].experts).ravel())
    assert len(chosen) > 1
    for grad in (grads.gate, grads.up, grads.down):
        learns = np.abs(grad[...]).sum(axis=(1, 2)) > 0
        assert set(np.flatnonzero(learns)) == chosen


@pytest.mark.parametrize(
    "kind, options",
    [
        (MoE, dict(router=partial(TopKRouter, top_k=1))),
        (MoE, dict(router=partial(SigmoidRouter, top_k=1))),
        (
            MoE,
            dict(
                router=partial(SoftmaxRouter, top_k=1),
                dispatch=CapacityDispatch(capacity_factor=1.0),
            ),
        ),
        (ExpertChoice, dict(capacity_factor=1)),
    ],
)
def test_one_expert_equals_its_feed_forward_layer(init, x, kind, options):
    one, plain = (
        kind(D, init, experts=1, hidden=F, **options),
        SwiGLU(D, init, hidden=F),
    )
    for name in ("gate", "up", "down"):
        getattr(plain, name).w.set_value(getattr(one, name)[0])
    np.testing.assert_allclose(run(one, x)[0], run(plain, x)[0], atol=1e-5)


def test_full_capacity_drops_nothing(make, x):
    """With capacity for all tokens, capacity dispatch equals dropless dispatch."""
    layer = make("top 2")
    want, aux = run(layer, x, PADDED)
    layer.dispatch = CapacityDispatch(capacity_factor=E / 2)
    got, more = run(layer, x, PADDED)
    unpadded = np.asarray(PADDED > 0)
    np.testing.assert_allclose(got[unpadded], want[unpadded], atol=1e-5)
    assert more.pop("dropped").value == 0
    chex.assert_trees_all_equal(aux, more)


def test_the_fraction_of_dropped_choices_is_reported(make, x):
    layer = make("capacity")
    taken = len(list(choices(layer, np.asarray(x), np.asarray(PADDED > 0))))
    dropped = run(layer, x, PADDED)[1]["dropped"]
    wanted = 2 * int((PADDED > 0).sum())
    assert taken < wanted
    assert dropped == (wanted - taken, wanted)


def test_expert_choice_of_all_tokens_equals_token_choice_of_all_experts(init, x):
    by_experts = ExpertChoice(D, init, experts=E, hidden=F, capacity_factor=E)
    router = SoftmaxRouter(D, E, init, top_k=E)
    router.score = by_experts.score
    by_tokens = MoE(D, init, experts=E, hidden=F, router=lambda *_: router)
    for name in ("gate", "up", "down"):
        setattr(by_tokens, name, getattr(by_experts, name))
    want, _ = run(by_tokens, x)
    np.testing.assert_allclose(run(by_experts, x)[0], want, atol=1e-5)


def test_expert_choice_refuses_a_capacity_factor_above_the_experts(init):
    with pytest.raises(
        ValueError, match=r"ExpertChoice\.capacity_factor must be at most"
    ):
        ExpertChoice(D, init, experts=E, hidden=F, capacity_factor=E + 1)
