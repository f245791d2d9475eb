"""Small decoders of every make."""

from functools import partial

import jax
import pytest
from flax import nnx

from lmx.layers.attention import Attention
from lmx.layers.conv import ShortConv
from lmx.layers.mlp import SwiGLU
from lmx.layers.moe.layer import MoE
from lmx.layers.moe.router import TopK
from lmx.layers.position.absolute import Learned, Sinusoidal
from lmx.layers.position.rope import RoPE
from lmx.models.block import PostNorm, PreNorm, SandwichNorm
from lmx.models.decoder import Decoder

DENSE = partial(SwiGLU, hidden=16)
SPARSE = partial(MoE, experts=4, hidden=8, router=partial(TopK, choices=2))
ATTENTION = partial(Attention, heads=4, kv_heads=2, head_width=4)
UNTURNED = dict(attention=partial(ATTENTION, position=None))
LEARNED = UNTURNED | dict(position=partial(Learned, length=8))
WAVES = UNTURNED | dict(position=Sinusoidal)
TURNED = dict(attention=partial(ATTENTION, position=RoPE()))
CONV = dict(conv=partial(ShortConv, reach=2))

# Every two of block, feed-forward layer, position and convolution meet in one of them.
VARIANTS = {
    "pre rope dense conv": (PreNorm, TURNED, DENSE, CONV),
    "pre learned moe": (PreNorm, LEARNED, SPARSE, {}),
    "pre waves dense": (PreNorm, WAVES, DENSE, {}),
    "post rope moe conv": (PostNorm, TURNED, SPARSE, CONV),
    "post learned dense": (PostNorm, LEARNED, DENSE, {}),
    "post waves moe conv": (PostNorm, WAVES, SPARSE, CONV),
    "sandwich rope dense": (SandwichNorm, TURNED, DENSE, {}),
    "sandwich learned moe conv": (SandwichNorm, LEARNED, SPARSE, CONV),
    "sandwich waves moe": (SandwichNorm, WAVES, SPARSE, {}),
}


@pytest.fixture(scope="session")
def make():
    """Makes a decoder of 3 layers, all dropout at `rate`, with what else is `said`."""

    def make(variant="pre rope dense conv", rate=0.0, **said):
        block, positions, mlp, conv = VARIANTS[variant]
        attention = partial(positions["attention"], dropout=rate)
        block = partial(block, dropout=rate, **conv)
        chosen = dict(vocab=11, width=16, depth=3, dropout=rate, mlp=mlp, block=block)
        chosen |= positions | dict(attention=attention) | said
        model = Decoder(nnx.Rngs(0), **chosen)
        return awake(model) if conv else model

    return make


def awake(model: Decoder) -> Decoder:
    """With convolutions that do something, which at birth they do not."""
    for conv in (model.stack.blocks.attention_conv, model.stack.blocks.mlp_conv):
        assert conv
        values = jax.random.normal(jax.random.key(7), conv.w.shape)
        conv.w.set_value(values.astype(conv.w.dtype))
    return model


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def exact():
    """In float64, where rounding cannot hide a fault."""
    with jax.enable_x64(True):
        yield
