"""The model of `tests/golden/infer/make.py`, with weights given by their names."""

import json
import zlib
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.layers.attention.attention import Attention
from lmx.layers.mlp import SwiGLU
from lmx.models.decoder import Decoder
from tests.hash_init import HashInit

GOLDEN = Path(__file__).parents[1] / "golden" / "infer"
V, D, N, K, H, F, DEPTH = 13, 16, 4, 2, 4, 24, 2
BLOCK = {  # path in lmx, shape, and the name in transformers
    ("attention", "q", "w"): ((D, N, H), "self_attn.q_proj"),
    ("attention", "k", "w"): ((D, K, H), "self_attn.k_proj"),
    ("attention", "v", "w"): ((D, K, H), "self_attn.v_proj"),
    ("attention", "out", "w"): ((N, H, D), "self_attn.o_proj"),
    ("mlp", "gate", "w"): ((D, F), "mlp.gate_proj"),
    ("mlp", "up", "w"): ((D, F), "mlp.up_proj"),
    ("mlp", "down", "w"): ((F, D), "mlp.down_proj"),
    ("attention_norm", "scale"): ((D,), "input_layernorm"),
    ("mlp_norm", "scale"): ((D,), "post_attention_layernorm"),
}


def sample_weight(name, *shape):
    noise = np.random.default_rng(zlib.crc32(f"{name}.weight".encode()))
    value = noise.normal(size=shape).astype(np.float32)
    return 1 + value / 8 if "norm" in name else value / 2


def layer(at, shape, name):
    """One layer's weight, which transformers keeps as outputs times inputs."""
    if len(shape) == 1:
        return sample_weight(f"model.layers.{at}.{name}", *shape)
    into = shape[:-1] if name.endswith("o_proj") else shape[:1]
    rows, columns = int(np.prod(shape)) // int(np.prod(into)), int(np.prod(into))
    return sample_weight(f"model.layers.{at}.{name}", rows, columns).T.reshape(shape)


def weights():
    """Each of the weights under the end of its path in lmx."""
    found = {
        path: np.stack([layer(at, *kind) for at in range(DEPTH)])
        for path, kind in BLOCK.items()
    }
    return found | {
        ("embedding",): sample_weight("model.embed_tokens", V, D),
        ("norm", "scale"): sample_weight("model.norm", D),
        ("head", "out", "w"): sample_weight("lm_head", V, D).T,
    }


BLOCK_PATH = ("stack", "cycles", 0, "blocks", 0)


@pytest.fixture(scope="session")
def llama():
    """The graph and parameters of a tiny Llama."""
    model = Decoder(
        nnx.Rngs(0),
        init=HashInit(),
        vocab=V,
        width=D,
        depth=DEPTH,
        attention=partial(Attention, heads=N, kv_heads=K, head_dim=H),
        mlp=partial(SwiGLU, hidden=F),
    )
    left = weights()
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        (end,) = [end for end in left if path in (end, (*BLOCK_PATH, *end))]
        value = left.pop(end)
        assert value.shape == variable.shape
        variable.set_value(jnp.asarray(value))
    assert not left
    return nnx.split(model)


@pytest.fixture(scope="session")
def searches():
    """The options and results of generation by transformers with that model."""
    return json.loads((GOLDEN / "searches.json").read_text())


@pytest.fixture(scope="session")
def rules():
    """Logits, the tokens before them, and what transformers leaves under each rule."""
    return dict(np.load(GOLDEN / "rules.npz"))
