"""Multi-head latent attention, expanded and absorbed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.layers.attention.backend import attend
from lmx.layers.attention.kv_cache import CacheSize, make_inputs
from lmx.layers.attention.mla import MLA
from lmx.layers.init import FanIn, Init
from lmx.layers.linear import Einsum
from lmx.layers.mask import make_attention_mask
from lmx.layers.norm import rms_norm

B, T, D, N, H, J, R, P = 2, 5, 12, 3, 4, 6, 7, 2
MAKE = partial(MLA, heads=N, kv_rank=R, head_dim=H, rope_dim=P, value_dim=J)
RANKS = pytest.mark.parametrize("rank", [None, 5])


@pytest.fixture
def x():
    with jax.enable_x64(True):
        yield jax.random.normal(jax.random.key(1), (B, T, D), "float64")


def make_layer(**options):
    return MAKE(D, Init(nnx.Rngs(0), FanIn(), depth=2, dtype="float64"), **options)


def layer_inputs():
    return make_inputs(jnp.zeros((B, T), "int32"), None, None, None)


def normalize(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def turned(x, position):
    """Rotates the two channels of `x` by one radian per token."""
    z = (x[0] + 1j * x[1]) * np.exp(1j * position)
    return np.array([z.real, z.imag])


@RANKS
def test_agrees_with_one_query_at_a_time(x, rank):
    layer = make_layer(q_rank=rank)
    w = {
        ".".join(map(str, path)): np.asarray(value[...])
        for path, value in nnx.to_flat_state(nnx.state(layer, nnx.Param))
    }
    x = np.asarray(x)
    c = normalize((x @ w["down.w"])[..., :R])
    turning = (x @ w["down.w"])[..., R:]
    q_in = x if rank is None else normalize(x @ w["query.down.w"])
    up_q = w["query.w"] if rank is None else w["query.up.w"]
    want = np.zeros((B, T, D))
    for b, t, n in np.ndindex(B, T, N):
        q = np.einsum("r,rh->h", q_in[b, t], up_q[:, n])
        logits, values = [], []
        for s in range(t + 1):
            k = np.einsum("r,rh->h", c[b, s], w["up.w"][:, n])
            logit = q[:H] @ k[:H] + turned(q[H:], t) @ turned(turning[b, s], s)
            logits.append(logit / np.sqrt(H + P))
            values.append(k[H:])
        share = np.exp(np.array(logits) - max(logits))
        want[b, t] += share / share.sum() @ np.array(values) @ w["out.w"][n]
    got = jax.jit(lambda layer, x: layer(x, layer_inputs())[0])(layer, x)
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_without_rotation_it_equals_multi_head_attention_to_expanded_latents(x):
    """A zero rotary part of queries ignores positions."""
    layer = make_layer(scale=H**-0.5)
    assert isinstance(layer.query, Einsum)
    layer.query.w.set_value(layer.query.w[...].at[:, :, H:].set(0.0))
    latent_BTR = (x @ layer.down.w[...])[..., :R]
    made_BTNH = layer.up(rms_norm(latent_BTR, jnp.ones(R), 1e-6))
    q_BTNH = layer.query(x)[..., :H]
    here = layer_inputs().tokens
    k_BTNH, v_BTNJ = made_BTNH[..., :H], made_BTNH[..., H:]
    want = layer.out(attend(q_BTNH, k_BTNH, v_BTNJ, make_attention_mask(here, here)))
    np.testing.assert_allclose(layer(x, layer_inputs())[0], want, atol=1e-12)


def test_the_cache_has_a_latent_and_one_rotated_key_per_token(x):
    cache = make_layer().init_cache(CacheSize(3, 9, jnp.dtype("float32")))
    assert cache.values.shape == (3, 9, R + P)


def test_an_odd_rope_dim_is_refused(init):
    with pytest.raises(ValueError, match="cannot rotate 3 channels in pairs"):
        MAKE(D, init, rope_dim=3)
