"""Small states, and a folder for their checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.reader import CheckpointReader
from lmx.train.step import TrainState


def make_state(seed, size=64):
    noise = jnp.asarray(np.random.default_rng(seed).normal(size=(8, size)), "float32")
    return TrainState(
        jnp.int32(seed), {"w": noise, "scale": noise[0]}, (noise.astype("bfloat16"),)
    )


def abstract(state, sharding=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
    )


@pytest.fixture
def checkpoints(tmp_path):
    return CheckpointManager(tmp_path / "checkpoints", keep=2)


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, make_state(step))
    checkpoints.wait()


def reader_of(checkpoints, step):
    return CheckpointReader(checkpoints.directory.step_path(step))
