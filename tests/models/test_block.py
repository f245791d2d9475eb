"""Norm placement of each kind of block, by its formula."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.config.registry import find
from lmx.layers import mask
from lmx.layers.attention.attention import Attention
from lmx.layers.attention.kv_cache import AttentionInputs
from lmx.layers.init import Init
from lmx.layers.mlp import SwiGLU
from lmx.layers.norm import RMSNorm
from tests.hash_init import HashInit

B, T, D = 2, 4, 8
FORMULAS = {
    "PreNorm": (
        lambda x, f, block: x + f(block.attention_norm(x)),
        lambda x, f, block: x + f(block.mlp_norm(x)),
    ),
    "PostNorm": (
        lambda x, f, block: block.attention_norm(x + f(x)),
        lambda x, f, block: block.mlp_norm(x + f(x)),
    ),
    "SandwichNorm": (
        lambda x, f, block: x + block.attention_out_norm(f(block.attention_norm(x))),
        lambda x, f, block: x + block.mlp_out_norm(f(block.mlp_norm(x))),
    ),
    "ReorderedNorm": (
        lambda x, f, block: x + block.attention_norm(f(x)),
        lambda x, f, block: x + block.mlp_norm(f(x)),
    ),
}


@pytest.fixture(params=FORMULAS)
def kind(request):
    return request.param


@pytest.fixture
def block(kind):
    """A block with a random gain for each norm."""
    init = Init(nnx.Rngs(0), HashInit(), depth=2)
    attention = partial(Attention, heads=2, kv_heads=1, head_dim=4)
    block = find(kind, "a page")(D, init, attention, partial(SwiGLU, hidden=8), RMSNorm)
    names = [name for name in vars(block) if name.endswith("_norm")]
    for seed, name in enumerate(names):
        gain = jax.random.normal(jax.random.key(seed), (D,))
        getattr(block, name).scale.set_value(gain)
    return block


def test_a_block_equals_its_formula(kind, block):
    segments = jnp.ones((B, T), int)
    layer_inputs = AttentionInputs(
        mask.describe_tokens(mask.positions_from_segments(segments), segments), T
    )
    x = jax.random.normal(jax.random.key(9), (B, T, D))
    attend, feed = FORMULAS[kind]

    def by_formula(block, x):
        x = attend(x, lambda x: block.attention(x, layer_inputs)[0], block)
        return feed(x, lambda x: block.mlp(x, layer_inputs.tokens.segments)[0], block)

    got = jax.jit(lambda block, x: block(x, layer_inputs, None)[0])(block, x)
    np.testing.assert_allclose(got, jax.jit(by_formula)(block, x), rtol=1e-5, atol=1e-5)
