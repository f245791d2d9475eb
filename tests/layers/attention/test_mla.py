"""Multi-head latent attention, expanded and absorbed."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.core import partitioning
from lmx.core.sharding import RULES, Mesh
from lmx.layers.attention import splash
from lmx.layers.attention.backend import CuDNNAttention, XLAAttention
from lmx.layers.attention.kv_cache import (
    AttentionInputs,
    CacheSize,
    KVCache,
    make_inputs,
)
from lmx.layers.attention.mla import MLA
from lmx.layers.attention.reference import ReferenceAttention, attend
from lmx.layers.attention.ring import RingAttention
from lmx.layers.attention.splash import SplashAttention
from lmx.layers.init import Init
from lmx.layers.linear import Einsum
from lmx.layers.mask import make_attention_mask
from lmx.layers.norm import rms_norm
from tests.hash_init import HashInit

B, T, D, N, H, J, R, P = 2, 5, 12, 3, 4, 6, 7, 2
MAKE = partial(MLA, heads=N, kv_rank=R, head_dim=H, rope_dim=P, value_dim=J)
RANKS = pytest.mark.parametrize("rank", [None, 5])


@pytest.fixture
def x():
    with jax.enable_x64(True):
        yield jax.random.normal(jax.random.key(1), (B, T, D), "float64")


def make_layer(**options):
    return MAKE(D, Init(nnx.Rngs(0), HashInit(), depth=2, dtype="float64"), **options)


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
    assert isinstance(layer.query, Einsum) and isinstance(layer.query.w, nnx.Param)
    layer.query.w.set_value(layer.query.w[...].at[:, :, H:].set(0.0))
    latent_BTR = (x @ layer.down.w[...])[..., :R]
    made_BTNH = layer.up(rms_norm(latent_BTR, jnp.ones(R), 1e-6))
    q_BTNH = layer.query(x)[..., :H]
    here = layer_inputs().tokens
    k_BTNH, v_BTNJ = made_BTNH[..., :H], made_BTNH[..., H:]
    want = layer.out(attend(q_BTNH, k_BTNH, v_BTNJ, make_attention_mask(here, here)))
    np.testing.assert_allclose(layer(x, layer_inputs())[0], want, atol=1e-12)


SEGMENTS = jnp.array([[1, 1, 1, 1, 1], [1, 1, 2, 2, 2]], "int32")


def run_with_gradients(backend, mesh=Mesh(data=1), length=T):
    """The outputs of packed rows, and the gradients of the parameters and inputs."""
    graph, params = nnx.split(make_layer(backend=backend))
    segments = jnp.repeat(SEGMENTS, length // T, axis=1)
    inputs = make_inputs(segments, None, segments, None)
    x = jax.random.normal(jax.random.key(1), (B, length, D), "float64")

    def total(params, x):
        x = partitioning.constrain(x, "BTD")
        y, _ = nnx.merge(graph, params)(x, inputs)
        return (jnp.sin(y) @ jnp.arange(1.0, D + 1)).sum(), y

    program = jax.grad(total, (0, 1), has_aux=True)
    built = mesh.build(jax.devices(), RULES)
    program = jax.jit(partitioning.with_partitioning(built, RULES, program))
    return jax.device_get(program(params, x))


def test_flash_attention_equals_the_reference(x):
    got, want = (
        run_with_gradients(backend)
        for backend in (RingAttention(block=2), ReferenceAttention())
    )
    chex.assert_trees_all_close(got, want, atol=1e-9)


@pytest.mark.meshes
@pytest.mark.parametrize(
    "mesh", [Mesh(data=1, context=4), Mesh(data=1, context=2, tensor=3)], ids=repr
)
def test_ring_attention_over_a_sharded_sequence_equals_the_reference(x, mesh):
    got = run_with_gradients(RingAttention(block=2), mesh, length=8 * T)
    want = run_with_gradients(ReferenceAttention(), length=8 * T)
    chex.assert_trees_all_close(got, want, atol=1e-9)


@pytest.fixture
def tpu(monkeypatch):
    """Pretends to be a TPU; Pallas kernels are interpreted."""
    make = partial(splash.kernels.make_splash_mha, interpret=True)
    monkeypatch.setattr(partitioning, "platform", lambda: "tpu")
    monkeypatch.setattr(splash.kernels, "make_splash_mha", make)


def test_splash_attention_equals_the_reference(tpu, init):
    x = jax.random.normal(jax.random.key(1), (B, T, D))
    layer = MAKE(D, init, backend=SplashAttention(block=128))
    inputs = make_inputs(SEGMENTS, None, SEGMENTS, None)
    run = jax.jit(lambda layer, x: layer(x, inputs)[0])
    got = run(layer, x)
    layer.backend = ReferenceAttention()
    np.testing.assert_allclose(got, run(layer, x), atol=1e-5)


def test_flash_attention_reads_the_latent_cache_like_the_reference(x):
    """Pieces of three tokens and of two, with the projections absorbed."""

    @jax.jit
    def read(layer, x):
        zeros_BS, zeros_B = jnp.zeros((B, 6), "int32"), jnp.zeros(B, "int32")
        cache = KVCache(None, zeros_BS, zeros_BS, zeros_B, zeros_B, zeros_B + T)
        state, pieces = layer.init_cache(CacheSize(B, 6, x.dtype)), []
        positions = jnp.tile(jnp.arange(T, dtype="int32")[None], (B, 1))
        for part in (slice(0, 3), slice(3, 5)):
            tokens, cache = cache.append(positions[:, part], SEGMENTS[:, part])
            inputs = AttentionInputs(tokens, cache.final_length, cache)
            piece, state = layer(x[:, part], inputs, state)
            pieces.append(piece)
        return jnp.concatenate(pieces, axis=1)

    layer = make_layer()
    want = read(layer, x)
    layer.backend = RingAttention(block=2)
    np.testing.assert_allclose(read(layer, x), want, atol=1e-9)


@pytest.mark.parametrize("backend", [XLAAttention(), CuDNNAttention()], ids=repr)
def test_backends_without_values_of_another_size_refuse_by_name(init, backend):
    message = (
        rf"{type(backend).__name__} does not support MLA\.value_dim: .*MLA\.backend"
    )
    with pytest.raises(ValueError, match=message):
        MAKE(D, init, backend=backend)
    with pytest.raises(ValueError, match=r"RingAttention does not .* MLA\.dropout"):
        MAKE(D, init, dropout=0.1, backend=RingAttention())


def test_the_cache_has_a_latent_and_one_rotated_key_per_token(x):
    cache = make_layer().init_cache(CacheSize(3, 9, jnp.dtype("float32")))
    assert cache.values.shape == (3, 9, R + P)


def test_an_odd_rope_dim_is_refused(init):
    with pytest.raises(ValueError, match="cannot rotate 3 channels in pairs"):
        MAKE(D, init, rope_dim=3)
