"""Activations of a model: recorded by layer, replaced, and nothing else changed."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.analysis.capture import _run, capture
from lmx.config.registry import ConfigError
from lmx.core import partitioning
from lmx.core.sharding import RULES, Mesh
from lmx.layers import mlp
from lmx.layers.attention import attention
from lmx.layers.attention.attention import Attention, AttentionSink
from lmx.layers.attention.backend import XLAAttention
from lmx.layers.attention.kv_cache import make_inputs
from lmx.layers.attention.mla import MLA
from lmx.layers.mlp import SwiGLU
from lmx.layers.moe.moe import MoE
from lmx.layers.moe.router import TopKRouter
from lmx.layers.tap import TapRequest, record
from lmx.models import block, decoder
from lmx.models.decoder import Decoder

LOCAL = partial(Attention, heads=4, kv_heads=2, head_dim=4, window=2)
GLOBAL = partial(LOCAL, window=None, backend=XLAAttention())
DENSE = partial(SwiGLU, hidden=16)
SPARSE = partial(MoE, experts=4, hidden=8, router=partial(TopKRouter, top_k=2))
LATENT = partial(MLA, heads=4, kv_rank=6, head_dim=4, rope_dim=2, value_dim=3)
SINK = partial(LOCAL, sink=partial(AttentionSink, logit=0.5))
B, T, V, D, DEPTH = 2, 6, 11, 16, 5
TOKENS = np.random.default_rng(0).integers(0, V, (B, T))


def make(**options):
    """A layer of its own, then two cycles of local and global attention."""
    chosen: dict[str, Any] = dict(vocab=V, width=D, depth=DEPTH, mlp=DENSE)
    chosen |= dict(attention=(LOCAL, GLOBAL), first_mlps=(DENSE,)) | options
    graph, _ = nnx.split(nnx.eval_shape(lambda: Decoder(nnx.Rngs(0), **chosen)))
    init = jax.jit(lambda: nnx.split(Decoder(nnx.Rngs(0), **chosen))[1])
    return nnx.merge(graph, init())


def put(x, row):
    return x.at[:, 3].set(row)


@pytest.fixture(scope="module")
def model():
    return make()


@partial(jax.jit, static_argnums=0)
def run_by_hand(graph, params, layer=-1, row=0.0):
    """Logits and the hidden states after each block, one block after the other.

    After the block of that layer, `row` takes the place of position 3.
    """
    model = nnx.merge(graph, params)
    inputs = make_inputs(jnp.asarray(TOKENS), None, None, None)
    x, states = model.embed(jnp.asarray(TOKENS), inputs), []
    for cycle in model.stack.cycles:
        for iteration in range(cycle.group.repeats):
            for kind in cycle.blocks:
                graph, params = nnx.split(kind)
                params = jax.tree.map(lambda p, i=iteration: p[i], params)
                x, _, _ = nnx.merge(graph, params)(x, inputs, None)
                x = jnp.where(layer == len(states), put(x, row), x)
                states.append(x)
    return model.logits(model.norm(x)), states


def test_activations_are_those_of_blocks_run_one_after_the_other(model):
    """Layers of several groups and kinds come in their order."""
    logits, states = run_by_hand(*nnx.split(model))
    found = capture(model, TOKENS, ["block.out", "embed", "final_norm"])
    np.testing.assert_allclose(found[0], logits, rtol=1e-4, atol=1e-5)
    assert [*found[1]["block.out"]] == [*range(DEPTH)]
    for x, y in zip(found[1]["block.out"].values(), states, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    assert found[1]["embed"].shape == found[1]["final_norm"].shape == (B, T, D)


def test_patching_a_layer_equals_the_blocks_run_with_that_change(model):
    """An array from another run in layer 2, at one position; then another layer."""
    rows = jax.random.normal(jax.random.key(0), (2, B, D))
    _, clean = capture(model, TOKENS, ["block.out"])
    for layer, row in zip((2, 3), rows, strict=True):
        patch = put(clean["block.out"][layer], row)
        replace = {"block.out": {layer: patch}}
        logits, values = capture(model, TOKENS, ["block.out"], replace=replace)
        by_hand, _ = run_by_hand(*nnx.split(model), layer, row)
        np.testing.assert_allclose(logits, by_hand, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(values["block.out"][layer][:, 3], row)


def test_a_patch_of_what_is_there_changes_nothing_and_does_not_compile_again(model):
    logits, values = capture(model, TOKENS, ["mlp.out"])
    compiled: Any = _run
    sizes = []
    for layer, x in values["mlp.out"].items():
        same, _ = capture(model, TOKENS, [], replace={"mlp.out": {layer: x}})
        np.testing.assert_array_equal(same, logits)
        sizes.append(compiled._cache_size())
    assert len(set(sizes)) == 1


def test_attention_maps_equal_numpy_and_sum_to_one():
    """From queries and keys; a sink takes the rest. Other backends store no maps."""
    model = make(attention=(SINK, GLOBAL, LATENT), depth=3, first_mlps=())
    names = ["attention.probs", "attention.q", "attention.k"]
    _, values = capture(model, TOKENS, names)
    probs = {n: np.asarray(x) for n, x in values["attention.probs"].items()}
    causal = np.tril(np.ones((T, T), bool))
    in_window = causal & ~np.tril(causal, -2)
    for layer, mask, rest in [(0, in_window, np.exp(0.5)), (1, causal, 0.0)]:
        q, k = (np.asarray(values[name][layer]) for name in names[1:])
        scores = np.einsum("btnh,bsnh->bnts", q, np.repeat(k, 2, axis=2)) / 2
        weights = np.where(mask, np.exp(scores), 0.0)
        expected = weights / (weights.sum(axis=-1, keepdims=True) + rest)
        np.testing.assert_allclose(probs[layer], expected, rtol=1e-4, atol=1e-6)
    for layer in (1, 2):
        np.testing.assert_allclose(probs[layer].sum(axis=-1), 1.0, rtol=1e-5)
        np.testing.assert_array_equal(probs[layer][:, :, ~causal], 0.0)


def lower(model):
    graph, params = nnx.split(model)
    run = jax.jit(lambda params, tokens: nnx.merge(graph, params).forward(tokens))
    return run.lower(params, TOKENS)


def test_without_a_request_the_program_is_that_of_a_model_without_taps(
    model, monkeypatch
):
    model = make(remat="keep_dots", depth=2, attention=GLOBAL)
    with_taps = lower(model).as_text()
    for module in (block, decoder, mlp, attention):
        monkeypatch.setattr(module, "tap", lambda name, x: x)
    assert lower(model).as_text() == with_taps


def test_a_compiled_function_is_the_same_before_and_after_a_capture(model):
    """A request leaves nothing behind, and takes nothing from a cache."""
    graph, params = nnx.split(model)
    call = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens))
    before = call(params, TOKENS)
    double = {"embed": lambda x: 2 * x}
    changed, _ = capture(model, TOKENS, ["embed"], replace=double)
    assert not np.allclose(changed, before)
    request = TapRequest(frozenset(["embed"]))
    with pytest.raises(ValueError, match="'embed' is in a function that JAX transf"):
        record(call, request)(params, TOKENS)  # compiled before, without taps
    np.testing.assert_array_equal(call(params, TOKENS), before)
    plain, _ = capture(model, TOKENS)
    np.testing.assert_allclose(plain, before, rtol=1e-5, atol=1e-6)


def test_layers_that_have_no_such_tap_are_left_out_or_refused():
    model = make(depth=2, mlp=SPARSE)  # and the first is dense
    names = ["router.logits", "mlp.hidden"]
    _, values = jax.eval_shape(lambda: capture(model, TOKENS, names))
    assert {layer: x.shape for layer, x in values[names[0]].items()} == {1: (B, T, 4)}
    assert [*values["mlp.hidden"]] == [0]
    for name, layer in [("router.logits", 0), ("block.out", 2), ("embed", 0)]:
        with pytest.raises(ConfigError, match=f"cannot be replaced in layer {layer}"):
            capture(model, TOKENS, replace={name: {layer: 0.0}})
    with pytest.raises(ConfigError, match="no tap 'blok'; it has .*'block.out'"):
        capture(model, TOKENS, ["blok"])


def test_gradients_of_activations_come_through_a_replacement(model):
    """The slope of the sum of logits, against two other captures."""

    def loss(x):
        replace = {"block.out": {1: x}}
        return capture(model, TOKENS, ["block.out"], replace=replace)[0].sum()

    x = capture(model, TOKENS, ["block.out"])[1]["block.out"][1]
    step = 1e-2 * jax.random.normal(jax.random.key(1), x.shape)
    slope = (jax.grad(loss)(x) * step).sum()
    np.testing.assert_allclose(loss(x + step) - loss(x - step), 2 * slope, rtol=2e-2)


def test_a_pipeline_refuses_taps(model):
    mesh = Mesh(stage=2, data=1).build(jax.devices()[:2], RULES)
    run = partitioning.with_partitioning(mesh, RULES, model.__call__)
    with pytest.raises(ConfigError, match="taps cannot be recorded in a pipeline"):
        jax.eval_shape(record(run, TapRequest(None)), jnp.asarray(TOKENS))
