"""Small decoders with all kinds of layers."""

from functools import partial

import jax
import pytest
from flax import nnx

from lmx.layers.attention.attention import Attention, AttentionSink
from lmx.layers.attention.infini import InfiniAttention
from lmx.layers.attention.mla import MLA
from lmx.layers.conv import ShortConv
from lmx.layers.linear import EinsumBias
from lmx.layers.mlp import SwiGLU
from lmx.layers.moe.moe import MoE
from lmx.layers.moe.router import TopKRouter
from lmx.layers.position import ALiBi, CoPE, LearnedPosition, SinusoidalPosition
from lmx.layers.rope import (
    DynamicNTK,
    Llama3RoPE,
    NTKAware,
    NTKByParts,
    PositionInterpolation,
    RoPE,
    YaRN,
)
from lmx.models.block import PostNorm, PreNorm, ReorderedNorm, SandwichNorm
from lmx.models.decoder import Decoder
from tests.hash_init import HashInit

DENSE = partial(SwiGLU, hidden=16)
SPARSE = partial(MoE, experts=4, hidden=8, router=partial(TopKRouter, top_k=2))
ATTENTION = partial(Attention, heads=4, kv_heads=2, head_dim=4)
NO_POSITION = dict(attention=partial(ATTENTION, position=None))
LEARNED = NO_POSITION | dict(position=partial(LearnedPosition, max_length=8))
SINUSOIDAL = NO_POSITION | dict(position=SinusoidalPosition)
ROPE = dict(attention=partial(ATTENTION, position=RoPE()))
WINDOW = partial(ATTENTION, window=3)
CYCLE = dict(attention=(partial(WINDOW, position=None), ATTENTION, WINDOW))
ALIBI = dict(attention=partial(ATTENTION, position=ALiBi()))
COPE = dict(attention=partial(ATTENTION, position=partial(CoPE, limit=3)))
SINK = dict(attention=partial(WINDOW, sink=partial(AttentionSink, logit=0.5)))
DYNAMIC = DynamicNTK(factor=3.0, trained_length=4, layout="interleaved")
DYNAMIC_NTK = dict(attention=partial(ATTENTION, position=DYNAMIC))
PARTS = NTKByParts(factor=3.0, trained_length=16)
SCALINGS = (PositionInterpolation(factor=3.0), NTKAware(factor=3.0), PARTS)
YARN = YaRN(factor=3.0, trained_length=16)
MORE_SCALINGS = (
    YARN,
    Llama3RoPE(factor=3.0, trained_length=16),
    RoPE(rotary_fraction=0.5),
)
INFINI = partial(
    InfiniAttention, heads=4, kv_heads=2, head_dim=4, segment_length=3, gate=0.5
)
OFFSET = partial(WINDOW, qkv=EinsumBias, out=EinsumBias, logit_cap=2.0, scale=1.0)
LATENT_ATTENTION = partial(MLA, heads=4, kv_rank=6, head_dim=4, rope_dim=2, value_dim=3)


def rotate(positions):
    """Attention with each position scheme."""
    return tuple(partial(ATTENTION, position=each) for each in positions)


CONV = dict(conv=partial(ShortConv, reach=2))

# Covers all pairs of block, feed-forward layer, position and convolution.
VARIANTS = {
    "pre rope dense conv": (PreNorm, ROPE, DENSE, CONV),
    "pre learned moe": (PreNorm, LEARNED, SPARSE, {}),
    "pre waves dense": (PreNorm, SINUSOIDAL, DENSE, {}),
    "post rope moe conv": (PostNorm, ROPE, SPARSE, CONV),
    "post learned dense": (PostNorm, LEARNED, DENSE, {}),
    "post waves moe conv": (PostNorm, SINUSOIDAL, SPARSE, CONV),
    "sandwich rope dense": (SandwichNorm, ROPE, DENSE, {}),
    "sandwich learned moe conv": (SandwichNorm, LEARNED, SPARSE, CONV),
    "sandwich waves moe": (SandwichNorm, SINUSOIDAL, SPARSE, {}),
    "reordered cycle of windows moe": (ReorderedNorm, CYCLE, SPARSE, {}),
    "pre alibi": (PreNorm, ALIBI, DENSE, {}),
    "reordered cope": (ReorderedNorm, COPE, DENSE, {}),
    "pre window sink": (PreNorm, SINK, DENSE, {}),
    "post stretched": (PostNorm, DYNAMIC_NTK, DENSE, {}),
    "sandwich offsets cap": (SandwichNorm, dict(attention=OFFSET), DENSE, {}),
    "pre latent": (PreNorm, dict(attention=LATENT_ATTENTION), DENSE, {}),
    "post latent queries": (
        PostNorm,
        dict(attention=partial(LATENT_ATTENTION, q_rank=5)),
        DENSE,
        {},
    ),
    "pre slowed": (PreNorm, dict(attention=rotate(SCALINGS)), DENSE, {}),
    "post tuned": (PostNorm, dict(attention=rotate(MORE_SCALINGS)), DENSE, {}),
    "pre infini": (PreNorm, dict(attention=INFINI), DENSE, {}),
    "lead window cope moe": (
        PreNorm,
        dict(
            attention=(partial(WINDOW, position=CoPE), ATTENTION), first_mlps=(DENSE,)
        ),
        SPARSE,
        {},
    ),
}


@pytest.fixture(scope="session")
def make():
    """Makes a decoder of 3 layers with dropout `rate` and other `options`."""

    def make(variant="pre rope dense conv", rate=0.0, **options):
        block, positions, mlp, conv = VARIANTS[variant]
        attention = positions["attention"]
        cycle = attention if isinstance(attention, tuple) else (attention,)
        attention = tuple(partial(part, dropout=rate) for part in cycle)
        block = partial(block, dropout=rate, **conv)
        chosen = dict(vocab=11, width=16, depth=3, dropout=rate, mlp=mlp, block=block)
        chosen |= (
            positions | dict(init=HashInit()) | dict(attention=attention) | options
        )
        model = Decoder(nnx.Rngs(0), **chosen)
        return randomize_convs(model) if conv else model

    return make


def randomize_convs(model: Decoder) -> Decoder:
    """Replaces the initial zeros of convolutions by random weights."""
    [(block, _)] = model.stack.kinds()
    for conv in (block.attention_conv, block.mlp_conv):
        assert conv
        values = jax.random.normal(jax.random.key(7), conv.w.shape)
        conv.w.set_value(values.astype(conv.w.dtype))
    return model


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def exact():
    """Runs in float64, where rounding does not hide errors."""
    with jax.enable_x64(True):
        yield
