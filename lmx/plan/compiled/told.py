"""What a compiler answered, as a forecast."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from lmx.plan.analytic import roofline
from lmx.plan.analytic.memory import Memory
from lmx.plan.analytic.roofline import Seconds
from lmx.plan.analytic.traffic import Collective
from lmx.plan.case import Case
from lmx.plan.compiled.measure import Measured, Told
from lmx.plan.compiled.process import Answer
from lmx.plan.forecast import Compiling, Forecast

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# Products with the tile at hand in each run of jax's splash attention kernels.
PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}


def forecast(said: Forecast, answer: Answer) -> Forecast:
    """An analytic forecast with the compiler's numbers in the place of its own.

    Where the compiler refused, of memory only; the rest stays analytic.
    """
    if answer.measured is None:
        return dataclasses.replace(
            said,
            how=f"Refused by {answer.compiler}; all but memory is analytic",
            memory=Memory(_asked(said, answer.refused or ""), {"": {}}),
        )
    traffic = tuple(_collective(said.case, each) for each in answer.measured.told)
    traffic = tuple(sorted(traffic, key=lambda each: -each.seconds))
    return dataclasses.replace(
        said,
        how=f"Compiled by {answer.compiler} in {answer.seconds:.0f} s",
        memory=Memory({k: float(v) for k, v in answer.memory.items()}, {"": {}}),
        traffic=traffic,
        seconds=_seconds(said, answer.measured, traffic),
        compiled=Compiling(answer.seconds, answer.peak),
        uncounted=tuple(k for k in answer.measured.kernels if not _products(k)),
    )


def _seconds(said: Forecast, measured: Measured, traffic: tuple) -> Seconds:
    case = said.case
    clock = case.machine.chip.clock
    assert clock
    return Seconds(
        compute=measured.products / clock + _kernels(said, measured.kernels),
        memory=measured.passes / clock,
        hidden=sum((each.seconds for each in traffic if each.hidden), 0.0),
        exposed=sum((each.seconds for each in traffic if not each.hidden), 0.0),
    )


def _kernels(said: Forecast, kernels: Mapping[str, int]) -> float:
    """Seconds of attention kernels, which no compiler counts."""
    case = said.case
    layers = sum(count for _, count in case.model.stack.all()) * case.microbatches
    runs = sum(times * _products(name) for name, times in kernels.items()) / layers
    one = (said.flops.causal - said.flops.weights) / 6  # FLOPs of one product
    return roofline.attending(case, runs * one)


def _products(name: str) -> int:
    """How many products of queries and keys, or the like, a kernel takes."""
    found = re.search(r"splash_\w*?(fwd|dq|dkv)", name)
    return PRODUCTS[found[1]] if found else 0


def _collective(case: Case, told: Told) -> Collective:
    """Its axis by where its devices stand, its time by what links can carry."""
    count = len(told.members)
    places = np.unravel_index(told.members, tuple(case.sizes.values()))
    over = [
        axis
        for axis, at in zip(case.sizes, places, strict=True)
        if len(set(at.tolist())) > 1
    ]
    ordered = sorted(told.members)
    stride = min(np.diff(ordered).tolist(), default=1)
    whole = {"all-reduce": 2.0, "reduce-scatter": float(count)}.get(told.kind, 1.0)
    whole *= told.bytes
    return Collective(
        kind=told.kind,
        axis="+".join(over) or "itself",
        of=f"{told.times:,} times",
        bytes=whole * (1 - 1 / count),
        seconds=case.machine.gathering(whole, count, stride) if over else 0.0,
        hidden=told.hidden,
    )


def _asked(said: Forecast, refused: str) -> dict[str, float]:
    """Bytes that the compiler found a device to need, as its refusal says."""
    if found := re.search(r"Used ([\d.]+)([KMGT]?) of", refused):
        return {"what the compiler asked for": float(found[1]) * UNITS[found[2]]}
    if found := re.search(r"temporaries \(([\d.]+)([KMGT]?)\) exceed", refused):
        always = said.memory.always
        state = always["parameters"] + always["optimizer state"]
        return {"state": state, "in between": float(found[1]) * UNITS[found[2]]}
    raise ValueError(f"the compiler refused in unknown words: {refused[:200]}")
