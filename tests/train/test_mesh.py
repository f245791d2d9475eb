"""The same run on one device and on eight: rounding is all that may differ.

In float64, where rounding cannot hide a fault, and in float32 as one trains.
"""

import functools

import jax
import numpy as np
import pytest

from lmx.train.loop import train

ALONE = ("Mesh.data=1",)
MESHES = {
    "data=8": ("Mesh.data=8",),
    "fsdp=8": ("Mesh.data=1", "Mesh.fsdp=8"),
    "data=2 x fsdp=4": ("Mesh.data=2", "Mesh.fsdp=4"),
    "data=2 x fsdp=2 x tensor=2": ("Mesh.data=2", "Mesh.fsdp=2", "Mesh.tensor=2"),
    "expert=2 x fsdp=4": ("Mesh.data=1", "Mesh.expert=2", "Mesh.fsdp=4"),
}
NIGHTLY = pytest.mark.nightly
DOUBLE = [
    ("dense", "data=8"),
    ("dense", "fsdp=8"),
    ("dense", "data=2 x fsdp=2 x tensor=2"),
    ("moe", "data=2 x fsdp=4"),
    ("sigmoid", "expert=2 x fsdp=4"),
    pytest.param("dense", "data=2 x fsdp=4", marks=NIGHTLY),
    pytest.param("moe", "expert=2 x fsdp=4", marks=NIGHTLY),
    pytest.param("capacity", "expert=2 x fsdp=4", marks=NIGHTLY),
    pytest.param("expert choice", "expert=2 x fsdp=4", marks=NIGHTLY),
]
SINGLE = [
    ("dense", "data=2 x fsdp=4"),
    pytest.param("dense", "data=8", marks=NIGHTLY),
    pytest.param("dense", "fsdp=8", marks=NIGHTLY),
]


@pytest.fixture(scope="module")
def losses_of(tiny):
    """The loss after each of 50 steps of a variant on a mesh, each run once."""

    @functools.cache
    def losses_of(kind, mesh, wide):
        precision = [f"Precision.{of}={wide}" for of in ("params", "compute")]
        precision.append("Decoder.precision=@Precision()")
        run = tiny("Experiment.steps=50", *mesh, *precision, kind=kind).build().open()
        losses = []
        batches = (run.put(run.data.batch_at(run.seed, step)) for step in range(50))
        state = train(
            run.step,
            run.init(),
            batches,
            steps=50,
            hooks=[lambda done, state, metrics: losses.append(metrics["loss"])],
        )
        weight = jax.tree.leaves(state.params)[0]
        return np.array(losses), len(weight.sharding.device_set), weight.dtype

    return losses_of


@pytest.mark.parametrize(("kind", "mesh"), DOUBLE)
def test_eight_devices_agree_with_one_to_1e_9_in_float64(losses_of, kind, mesh):
    with jax.enable_x64(True):
        alone, *_ = losses_of(kind, ALONE, "float64")
        losses, devices, dtype = losses_of(kind, MESHES[mesh], "float64")
    assert (devices, dtype) == (8, np.float64)
    np.testing.assert_allclose(losses, alone, rtol=1e-9)
    assert losses[-1] < 0.9 * losses[0]  # and it was no idle run


@pytest.mark.parametrize(("kind", "mesh"), SINGLE)
def test_eight_devices_agree_with_one_to_1e_4_in_float32(losses_of, kind, mesh):
    alone, *_ = losses_of(kind, ALONE, "float32")
    losses, devices, dtype = losses_of(kind, MESHES[mesh], "float32")
    assert (devices, dtype) == (8, np.float32)
    np.testing.assert_allclose(losses, alone, rtol=1e-4)
