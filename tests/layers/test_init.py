"""Parameter initialization: scale, dtype and axis names."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.layers.attention.attention import Attention
from lmx.layers.init import (
    TRUNCATED_STD,
    DepthScaled,
    FanIn,
    GPT2Init,
    Init,
    Initializer,
    Normal,
    ZeroOut,
)
from lmx.layers.mlp import SwiGLU
from lmx.layers.moe.moe import MoE
from lmx.layers.moe.router import TopKRouter

SIZES = dict(D=128, F=256, V=512, E=4)
DEPTH = 8
INITIALIZERS = pytest.mark.parametrize(
    "initializer",
    [
        FanIn(embed=0.5),
        DepthScaled(embed=0.5),
        ZeroOut(embed=0.5),
        Normal(),
        GPT2Init(),
    ],
    ids=lambda initializer: type(initializer).__name__,
)
ROLES = pytest.mark.parametrize(
    "role, letters, into",
    [
        ("embed", "VD", "V"),
        ("hidden", "DF", "D"),
        ("residual", "FD", "F"),
        ("head", "DV", "D"),
    ],
)
# Standard deviations that the papers give, by scheme and role.
WANT = {
    FanIn: dict(embed=0.5, hidden=128**-0.5, residual=256**-0.5, head=128**-0.5),
    DepthScaled: dict(embed=0.5, hidden=128**-0.5, residual=0.015625, head=128**-0.5),
    ZeroOut: dict(embed=0.5, hidden=128**-0.5, residual=0.0, head=0.0),
    Normal: dict(embed=0.02, hidden=0.02, residual=0.02, head=0.02),
    GPT2Init: dict(embed=0.02, hidden=0.02, residual=0.02 / 16**0.5, head=0.02),
}


def make_init(initializer: Initializer = FanIn(), seed=0, dtype="float32"):
    return Init(nnx.Rngs(seed), initializer, DEPTH, dtype)


@INITIALIZERS
@ROLES
def test_a_weight_has_the_standard_deviation_of_its_role(
    initializer, role, letters, into
):
    w = np.asarray(
        make_init(initializer).weight(letters, SIZES, in_dims=into, role=role)[...]
    )
    want = WANT[type(initializer)][role]
    assert w.std() == pytest.approx(want, rel=0.02)
    assert abs(w.mean()) <= 4 * want / w.size**0.5


@INITIALIZERS
def test_a_sample_has_the_requested_standard_deviation(initializer):
    w = np.asarray(initializer.sample(jax.random.key(0), (400, 400), 3.0))
    assert w.std() == pytest.approx(3.0, rel=0.01)


def test_a_truncated_normal_is_truncated_at_two_standard_deviations():
    w = np.asarray(FanIn().sample(jax.random.key(0), (400, 400), 1.0))
    assert np.abs(w).max() <= 2 / TRUNCATED_STD
    assert np.abs(w).max() > 1.99 / TRUNCATED_STD
    assert (np.abs(w) > 1 / TRUNCATED_STD).mean() == pytest.approx(0.2847, abs=0.005)


def test_truncated_std_is_that_of_a_normal_truncated_at_two():
    density = np.exp(-2.0) / np.sqrt(2 * np.pi)  # of the unit normal at 2
    assert TRUNCATED_STD == pytest.approx(
        np.sqrt(1 - 4 * density / 0.954499736103642), rel=1e-12
    )


def test_experts_are_independent_matrices():
    """The number of experts is no part of the fan-in, and experts differ."""
    w = make_init().weight("EDF", SIZES, in_dims="D", out_dims="F")
    assert (w.in_dims, w.out_dims) == (("embed",), ("mlp",))
    np.testing.assert_allclose(w[...].std(axis=(1, 2)), 128**-0.5, rtol=0.03)
    flat = np.asarray(w[...]).reshape(4, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(4)).max() < 0.03


def test_a_weight_carries_the_names_of_its_axes():
    w = make_init().weight("VD", SIZES, in_dims="V", role="embed")
    assert (w.axes, w.in_dims, w.out_dims) == (
        ("vocab", "embed"),
        ("vocab",),
        ("embed",),
    )
    gain = make_init().full("D", SIZES, 1.0)
    assert (gain.axes, gain.in_dims, gain.out_dims) == (("embed",), (), ())
    assert (gain[...] == 1.0).all()


@INITIALIZERS
def test_parameters_are_created_in_their_dtype(initializer):
    init = make_init(initializer, dtype="bfloat16")
    assert init.weight("DF", SIZES, in_dims="D").dtype == jnp.bfloat16
    assert init.full("D", SIZES, 1.0).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "make",
    [
        partial(SwiGLU, hidden=16),
        partial(Attention, heads=2, kv_heads=2, head_dim=8),
        partial(MoE, experts=2, hidden=8, router=partial(TopKRouter, top_k=1)),
    ],
    ids=["SwiGLU", "Attention", "MoE"],
)
def test_weights_are_independent_and_reproducible_from_the_seed(make):
    def leaves(seed):
        return [w.ravel()[:16] for w in jax.tree.leaves(make(16, make_init(seed=seed)))]

    first, again, other = (np.stack(leaves(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(np.abs(np.concatenate([first, other])), axis=0)) == 2 * len(
        first
    )


def test_another_key_samples_other_weights():
    init = make_init(GPT2Init(std=0.1))
    keys = jax.random.split(jax.random.key(0))
    first, second = (
        init.with_key(key).weight("DF", SIZES, in_dims="D")[...] for key in keys
    )
    assert jnp.abs(first - second).max() > 0.1
    assert second.std() == pytest.approx(0.1, rel=0.02)
