"""What a compiler answered, as a forecast."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from lmx.plan.analytic import roofline
from lmx.plan.analytic.memory import MemoryUse
from lmx.plan.analytic.roofline import StepTime
from lmx.plan.analytic.traffic import Collective
from lmx.plan.case import Case
from lmx.plan.compiled.measure import CollectiveUse, StepProfile
from lmx.plan.compiled.worker import CompileResult
from lmx.plan.forecast import CompileCost, Forecast

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# Products with the tile at hand in each run of jax's splash attention kernels.
MATMULS_PER_KERNEL = {"fwd": 2, "dq": 3, "dkv": 4}


def refine(said: Forecast, answer: CompileResult) -> Forecast:
    """An analytic forecast with the compiler's numbers in the place of its own.

    Where the compiler refused, of memory only; the rest stays analytic.
    """
    if answer.profile is None:
        return dataclasses.replace(
            said,
            method=f"Refused by {answer.compiler}; all but memory is analytic",
            memory=MemoryUse(_parse_refusal(said, answer.refusal or ""), {"": {}}),
        )
    traffic = tuple(
        _to_collective(said.case, each) for each in answer.profile.collectives
    )
    traffic = tuple(sorted(traffic, key=lambda each: -each.seconds))
    return dataclasses.replace(
        said,
        method=f"Compiled by {answer.compiler} in {answer.seconds:.0f} s",
        memory=MemoryUse({k: float(v) for k, v in answer.memory.items()}, {"": {}}),
        collectives=traffic,
        seconds=_step_time(said, answer.profile, traffic),
        compiled=CompileCost(answer.seconds, answer.peak_memory),
        untimed_kernels=tuple(
            k for k in answer.profile.kernels if not _count_matmuls(k)
        ),
    )


def _step_time(said: Forecast, measured: StepProfile, traffic: tuple) -> StepTime:
    case = said.case
    clock = case.machine.chip.clock
    assert clock
    return StepTime(
        compute=measured.matmul_cycles / clock
        + _kernel_seconds(said, measured.kernels),
        memory=measured.other_cycles / clock,
        overlapped=sum((each.seconds for each in traffic if each.overlapped), 0.0),
        exposed=sum((each.seconds for each in traffic if not each.overlapped), 0.0),
    )


def _kernel_seconds(said: Forecast, kernels: Mapping[str, int]) -> float:
    """Seconds of attention kernels, which no compiler counts."""
    case = said.case
    layers = sum(count for _, count in case.model.stack.kinds()) * case.microbatches
    runs = sum(times * _count_matmuls(name) for name, times in kernels.items()) / layers
    one = (said.flops.causal - said.flops.weights) / 6  # FLOPs of one product
    return roofline.estimate_attention(case, runs * one)


def _count_matmuls(name: str) -> int:
    """How many products of queries and keys, or the like, a kernel takes."""
    found = re.search(r"splash_\w*?(fwd|dq|dkv)", name)
    return MATMULS_PER_KERNEL[found[1]] if found else 0


def _to_collective(case: Case, told: CollectiveUse) -> Collective:
    """Its axis by where its devices stand, its time by what links can carry."""
    count = len(told.devices)
    places = np.unravel_index(told.devices, tuple(case.sizes.values()))
    over = [
        axis
        for axis, at in zip(case.sizes, places, strict=True)
        if len(set(at.tolist())) > 1
    ]
    ordered = sorted(told.devices)
    stride = min(np.diff(ordered).tolist(), default=1)
    whole = {"all-reduce": 2.0, "reduce-scatter": float(count)}.get(told.kind, 1.0)
    whole *= told.bytes
    return Collective(
        kind=told.kind,
        axis="+".join(over) or "itself",
        payload=f"{told.runs:,} times",
        bytes=whole * (1 - 1 / count),
        seconds=case.machine.estimate_gather(whole, count, stride) if over else 0.0,
        overlapped=told.overlapped,
    )


def _parse_refusal(said: Forecast, refused: str) -> dict[str, float]:
    """Bytes that the compiler found a device to need, as its refusal says."""
    if found := re.search(r"Used ([\d.]+)([KMGT]?) of", refused):
        return {"what the compiler asked for": float(found[1]) * UNITS[found[2]]}
    if found := re.search(r"temporaries \(([\d.]+)([KMGT]?)\) exceed", refused):
        always = said.memory.persistent
        state = always["parameters"] + always["optimizer state"]
        return {"state": state, "in between": float(found[1]) * UNITS[found[2]]}
    raise ValueError(f"the compiler refused in unknown words: {refused[:200]}")
