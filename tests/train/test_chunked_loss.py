"""The chunked loss equals the loss, without all logits in memory."""

from functools import partial
from typing import Any

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from lmx.config.registry import ConfigError
from lmx.core.batch import Batch
from lmx.core.precision import Precision
from lmx.core.sharding import RULES, Mesh, shardings
from lmx.layers.attention.attention import Attention
from lmx.layers.linear import LMHead, TiedLMHead
from lmx.layers.mlp import SwiGLU
from lmx.layers.moe.moe import MoE
from lmx.layers.moe.router import TopKRouter
from lmx.models.decoder import Decoder
from lmx.models.mtp import MultiTokenPrediction
from lmx.train.loss import MultiToken, NextToken
from lmx.train.program import batch_shardings
from lmx.train.step import compute_gradients
from tests.hash_init import HashInit

pytestmark = pytest.mark.usefixtures("x64")

B, T, V = 8, 12, 32
NOISE = np.random.default_rng(0)
SEGMENTS = np.repeat([[1, 2, 0]], [5, 5, 2], axis=1).repeat(B, axis=0).astype(np.int32)
WEIGHTS = NOISE.integers(0, 3, (B, T)) / 2 * (SEGMENTS > 0)
POSITIONS = np.tile(np.r_[:5, :5, :2], (B, 1)).astype(np.int32)
TOKENS, TARGETS = NOISE.integers(0, V, (2, B, T)).astype(np.int32)
BATCH = Batch(TOKENS, TARGETS, WEIGHTS.astype(np.float32), POSITIONS, SEGMENTS)

SPARSE = partial(MoE, experts=4, hidden=8, router=partial(TopKRouter, top_k=2))
AUX = {"balance": 0.1, "router_z": 0.1}
CASES = {
    "untied": (NextToken, dict(head=LMHead), {}),
    "tied, capped, with a z-loss": (
        NextToken,
        dict(head=TiedLMHead, logit_cap=2.0),
        dict(z_loss=0.1),
    ),
    "several tokens ahead, with experts": (
        MultiToken,
        dict(mtp=partial(MultiTokenPrediction, modules=2), mlp=SPARSE),
        dict(z_loss=0.1, aux=AUX),
    ),
}


def make_model(compute, **options: Any):
    model: dict[str, Any] = dict(mlp=partial(SwiGLU, hidden=16)) | options
    precision = Precision(params="float64", compute=compute)
    return Decoder(
        nnx.Rngs(0),
        vocab=V,
        width=16,
        depth=1,
        attention=partial(Attention, heads=2, kv_heads=2, head_dim=8),
        precision=precision,
        init=HashInit(),
        **model,
    )


def found(loss, model, mesh=None, batch=BATCH):
    """The gradient, the loss and its means, optionally on a mesh."""
    graph, params = nnx.split(model)
    take = partial(compute_gradients, partial(nnx.merge, graph), loss)
    if mesh is None:
        return jax.jit(take)(params, batch)
    places = shardings(params, mesh, RULES)
    rows = batch_shardings(batch, mesh, RULES)
    return jax.jit(take, in_shardings=(places, rows))(params, batch)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.nightly), 4])
def test_a_chunked_loss_has_the_sums_and_gradient_of_the_whole(case, chunk):
    kind, model, options = CASES[case]
    model = make_model("float64", **model)
    whole = found(kind(**options), model)
    parts = found(kind(chunk=chunk, **options), model)
    chex.assert_trees_all_close(parts, whole, rtol=1e-10, atol=1e-13)
    assert float(whole[1].total) > 0


def test_in_bfloat16_chunks_differ_by_rounding_of_gradients_only():
    model = make_model("bfloat16")
    whole, parts = (found(NextToken(chunk=chunk), model) for chunk in (None, 4))
    chex.assert_trees_all_close(parts[1:], whole[1:], rtol=1e-6)
    assert parts[1].total.dtype == "float32"
    norm = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole[0]))
    chex.assert_trees_all_close(parts[0], whole[0], atol=0.02 * norm)


def test_chunks_on_eight_devices_agree_with_the_whole_on_one():
    model, loss = make_model("float64", head=TiedLMHead), NextToken(chunk=3, z_loss=0.1)
    mesh = Mesh(data=2, fsdp=2, tensor=2).build(jax.devices(), RULES)
    whole = found(NextToken(z_loss=0.1), model)
    split = found(loss, model, mesh)
    chex.assert_trees_all_close(split, whole, rtol=1e-9, atol=1e-13)


def test_the_program_has_only_the_logits_of_one_chunk():
    graph, params = nnx.split(make_model("float64"))

    def shapes(chunk):
        take = jax.jit(
            partial(
                compute_gradients, partial(nnx.merge, graph), NextToken(chunk=chunk)
            )
        )
        return str(take.lower(params, BATCH).compile().as_text())

    every = f"[{B},{T},{V}]"
    assert every in shapes(None)
    assert every not in shapes(4) and f"[{B},4,{V}]" in shapes(4)


@pytest.mark.parametrize("chunk", [5, 24])
def test_a_chunk_must_divide_a_row(chunk):
    with pytest.raises(
        ConfigError, match=rf"rows of 12 tokens .* split into chunks of {chunk}"
    ):
        found(NextToken(chunk=chunk), make_model("float64"))
