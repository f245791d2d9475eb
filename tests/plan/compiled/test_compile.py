"""Training steps compiled for TPUs, on a machine without one."""

import math

import pytest

from lmx import load_experiment
from lmx.plan import case, topology
from lmx.plan.compiled.compile import compile_forecast
from lmx.plan.forecast import make_forecast
from tests.plan.conftest import TINY

pytestmark = pytest.mark.tpu


@pytest.fixture(scope="module")
def both():
    """Of the tiny page on 8 chips of v5e: the arithmetic, and what is compiled."""
    config = load_experiment(TINY, ["Mesh.fsdp=4", "Mesh.tensor=2"])
    planned = case.build_case(config.build(), topology.parse_machine("v5e-8"))
    forecast = make_forecast(planned, 1.0)
    return forecast, compile_forecast(config, forecast)


def test_a_step_compiles_for_eight_absent_chips(both):
    forecast, got = both
    assert got.compiled and got.method.startswith("Compiled by libtpu 0.")
    assert got.fits and got.seconds.compute_dtype > 0 and got.seconds.memory > 0
    state = (
        forecast.memory.persistent["parameters"]
        + forecast.memory.persistent["optimizer state"]
    )
    # Beside the batch there is what tiles leave empty.
    assert got.memory.parts["state and batch"] >= state


def test_collectives_are_along_the_axes_of_the_mesh(both):
    _, got = both
    axes = {each.axis for each in got.collectives if each.bytes}
    assert {"fsdp", "tensor"} <= axes <= {"fsdp", "tensor", "fsdp+tensor"}
    assert all(each.bytes >= 0 and each.seconds >= 0 for each in got.collectives)


def test_slices_reduce_shards_over_the_network():
    config = load_experiment(TINY, ["Mesh.replica=2", "Mesh.fsdp=4"])
    planned = case.build_case(config.build(), topology.parse_machine("2xv5e-4"))
    got = compile_forecast(config, make_forecast(planned, 1.0))
    slow = [e for e in got.collectives if (e.kind, e.axis) == ("all-reduce", "replica")]
    tensors = planned.tensors("params")
    shares = sum(4 * math.prod(tensor.local_shape) for tensor in tensors)
    # A ring of two sends each share once; tiles leave something empty.
    whole = sum(tensor.bytes for tensor in tensors)
    assert shares <= sum(each.bytes for each in slow) < whole


def test_a_refusal_of_the_compiler_has_the_needed_memory():
    words = [
        "Decoder.vocab=65536",
        "RepeatTask.vocab=65536",
        "RepeatTask.sequence_length=16384",
    ]
    config = load_experiment(TINY, [*words, "Mesh.data=1"])
    planned = case.build_case(config.build(), topology.parse_machine("v5e-1"))
    got = compile_forecast(config, make_forecast(planned, 1.0))
    assert not got.fits and got.method.startswith("Refused by libtpu")
    assert planned.machine.chip.memory < got.memory.total < float("inf")
