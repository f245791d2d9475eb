"""What a compiler's answer means for the forecast, by hand."""

import dataclasses
import json

import pytest

from lmx.plan.compiled import refine
from lmx.plan.compiled.measure import CollectiveUse, StepProfile
from lmx.plan.compiled.worker import CompileResult
from lmx.plan.forecast import make_forecast

KERNELS = {"splash_mha_fwd_residuals": 4, "splash_mha_dq": 2, "splash_mha_dkv": 2}
SAID = [
    CollectiveUse("all-gather", (0, 2, 4, 6), 4e6, 8, True),
    CollectiveUse("all-reduce", (0, 1), 1e6, 2, False),
]


def answered(**changes):
    measured = StepProfile(15_000_000, 3_000_000, KERNELS | {"mine": 2}, SAID)
    answer = CompileResult(
        compiler="libtpu 1", seconds=9.0, peak_memory=10, memory={"in between": 7}
    )
    return dataclasses.replace(answer, **({"profile": measured} | changes))


@pytest.fixture(scope="module")
def said(opened):
    return make_forecast(opened("Mesh.fsdp=4", "Mesh.tensor=2"), 1.0)


def test_cycles_are_seconds_by_the_clock_and_kernels_are_added(said):
    got = refine.refine(said, answered())
    product = (said.flops.causal - said.flops.weights) / 6
    layers, tokens = 2, said.case.tokens / 8
    products = (4 * 2 + 2 * 3 + 2 * 4) / layers
    kernels = products * product * tokens / (0.5 * 197e12)
    assert got.seconds.compute == pytest.approx(0.01 + kernels)
    assert got.seconds.memory == pytest.approx(0.002)
    assert got.memory.total == 7 and got.fits
    assert got.untimed_kernels == ("mine",)


def test_collectives_have_the_axes_and_seconds_of_their_devices(said):
    gather, sums = sorted(refine.refine(said, answered()).collectives)
    link = said.case.machine.chip.link_bandwidth
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
def test_a_refusal_says_how_much_was_asked_for(said, words, gib):
    got = refine.refine(said, answered(profile=None, refusal=words))
    assert got.memory.total == pytest.approx(gib * 2**30, rel=1e-4)
    assert not got.fits and got.compiled is None


def test_an_unknown_refusal_is_not_taken_for_another(said):
    with pytest.raises(ValueError, match="unknown words"):
        refine.refine(said, answered(profile=None, refusal="no memory"))


def test_an_answer_survives_the_way_between_processes():
    given = answered()
    assert CompileResult.from_json(json.dumps(dataclasses.asdict(given))) == given
