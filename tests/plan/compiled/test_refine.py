"""The forecast from a result of the compiler, by hand."""

import dataclasses

import pytest

from lmx.plan.compiled.compile import refine
from lmx.plan.compiled.measure import CollectiveUse, CompileResult, StepProfile
from lmx.plan.forecast import make_forecast

KERNELS = {"splash_mha_fwd_residuals": 4, "splash_mha_dq": 2, "splash_mha_dkv": 2}
USES = [
    CollectiveUse("all-gather", (0, 2, 4, 6), 4e6, 8, True),
    CollectiveUse("all-reduce", (0, 1), 1e6, 2, False),
]


def make_result(**changes):
    profile = StepProfile(15_000_000, 3_000_000, KERNELS | {"mine": 2}, USES)
    result = CompileResult(
        compiler="libtpu 1", seconds=9.0, peak_memory=10, memory={"temporaries": 7}
    )
    return dataclasses.replace(result, **({"profile": profile} | changes))


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
    assert not got.fits and got.compiled is None


def test_an_unknown_refusal_is_an_error(forecast):
    with pytest.raises(ValueError, match="unknown form"):
        refine(forecast, make_result(profile=None, refusal="no memory"))


def test_a_result_is_the_same_in_the_other_process():
    result = make_result()
    assert CompileResult.from_json(result.to_json()) == result
