"""The forecast from a result of the compiler, and steps compiled for absent TPUs."""

import math

import pytest

from lmx import load_experiment
from lmx.plan.case import build_case
from lmx.plan.compile import compile_forecast, refine
from lmx.plan.forecast import make_forecast
from lmx.plan.hlo import CollectiveUse, CompileResult, StepProfile
from lmx.plan.topology import parse_machine
from tests.plan.conftest import TINY

KERNELS = {"splash_mha_fwd_residuals": 4, "splash_mha_dq": 2, "splash_mha_dkv": 2}
USES = [
    CollectiveUse("all-gather", (0, 2, 4, 6), 4e6, 8, True),
    CollectiveUse("all-reduce", (0, 1), 1e6, 2, False),
]


def make_result(**changes):
    profile = StepProfile(15_000_000, 3_000_000, KERNELS | {"mine": 2}, USES)
    result = CompileResult(
        compiler="libtpu 1", seconds=9.0, peak_memory=10, memory={"temporaries": 7.0}
    )
    return result._replace(**({"profile": profile} | changes))


@pytest.fixture(scope="module")
def forecast(make_case):
    return make_forecast(make_case("Mesh.fsdp=4", "Mesh.tensor=2"), 1.0)


def test_seconds_are_cycles_over_the_clock_and_those_of_kernels(forecast):
    got = refine(forecast, make_result())
    product = (forecast.flops.causal - forecast.flops.weights) / 6
    layers, tokens = 2, forecast.case.tokens / 8
    products = (4 * 2 + 2 * 3 + 2 * 4) / layers
    kernels = products * product * tokens / (0.5 * 197e12)
    assert got.seconds.compute == pytest.approx(0.01 + kernels)
    assert got.seconds.memory == pytest.approx(0.002)
    assert got.memory.total == 7 and got.fits
    assert got.untimed_kernels == ("mine",)


def test_collectives_have_the_axes_and_seconds_of_their_devices(forecast):
    gather, sums = sorted(refine(forecast, make_result()).collectives)
    link = forecast.case.machine.chip.link_bandwidth
    assert (gather.axis, gather.bytes, gather.overlapped) == ("fsdp", 3e6, True)
    assert (sums.axis, sums.bytes, sums.overlapped) == ("tensor", 1e6, False)
    assert sums.seconds == pytest.approx(1e6 / (link / 2))


@pytest.mark.parametrize(
    ("words", "gib"),
    [
        ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.", 20.5),
        ("required for HLO temporaries (32.00G) exceeds available HBM (15.75G).", 32.0),
    ],
)
def test_a_refusal_has_the_needed_memory(forecast, words, gib):
    got = refine(forecast, make_result(profile=None, refusal=words))
    assert got.memory.total == pytest.approx(gib * 2**30, rel=1e-4)
    assert not got.fits and got.compile_cost is None


def test_an_unknown_refusal_is_an_error(forecast):
    with pytest.raises(ValueError, match="unknown form"):
        refine(forecast, make_result(profile=None, refusal="no memory"))


@pytest.fixture(scope="module")
def both():
    """Forecasts of the tiny experiment on 8 chips of v5e: analytic, and compiled."""
    config = load_experiment(TINY, ["Mesh.fsdp=4", "Mesh.tensor=2"])
    planned = build_case(config.build(), parse_machine("v5e-8"))
    forecast = make_forecast(planned, 1.0)
    return forecast, compile_forecast(config, forecast)


@pytest.mark.tpu
def test_a_step_compiles_for_eight_absent_chips(both):
    forecast, got = both
    assert got.compile_cost and got.method.startswith("Compiled by libtpu 0.")
    assert got.fits and got.seconds.compute > 0 and got.seconds.memory > 0
    state = (
        forecast.memory.persistent["parameters"]
        + forecast.memory.persistent["optimizer state"]
    )
    # Beside the batch there is what tiles leave empty.
    assert got.memory.parts["state and batch"] >= state


@pytest.mark.tpu
def test_collectives_are_along_the_axes_of_the_mesh(both):
    _, got = both
    axes = {each.axis for each in got.collectives if each.bytes}
    assert {"fsdp", "tensor"} <= axes <= {"fsdp", "tensor", "fsdp+tensor"}
    assert all(each.bytes >= 0 and each.seconds >= 0 for each in got.collectives)


@pytest.mark.tpu
def test_slices_reduce_shards_over_the_network():
    config = load_experiment(TINY, ["Mesh.replica=2", "Mesh.fsdp=4"])
    planned = build_case(config.build(), parse_machine("2xv5e-4"))
    got = compile_forecast(config, make_forecast(planned, 1.0))
    slow = [e for e in got.collectives if (e.kind, e.axis) == ("all-reduce", "replica")]
    tensors = planned.tensors("params")
    shares = sum(4 * math.prod(tensor.local_shape) for tensor in tensors)
    # A ring of two sends each share once; tiles leave something empty.
    whole = sum(tensor.bytes for tensor in tensors)
    assert shares <= sum(each.bytes for each in slow) < whole


@pytest.mark.tpu
def test_a_refusal_of_the_compiler_has_the_needed_memory():
    words = [
        "Decoder.vocab=65536",
        "RepeatTask.vocab=65536",
        "RepeatTask.sequence_length=16384",
    ]
    config = load_experiment(TINY, [*words, "Mesh.data=1"])
    planned = build_case(config.build(), parse_machine("v5e-1"))
    got = compile_forecast(config, make_forecast(planned, 1.0))
    assert not got.fits and got.method.startswith("Refused by libtpu")
    assert planned.machine.chip.memory < got.memory.total < float("inf")
