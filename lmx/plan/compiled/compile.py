"""Compiles a case with the compiler of its machine and refines the forecast with it."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from lmx.config.format import to_gin
from lmx.config.value import Config
from lmx.core.hardware import TPU_FLAGS
from lmx.plan.analytic import roofline
from lmx.plan.analytic.memory import MemoryUse
from lmx.plan.analytic.traffic import Collective
from lmx.plan.case import Case
from lmx.plan.compiled.measure import CollectiveUse, CompileResult
from lmx.plan.forecast import CompileCost, Forecast

# libtpu asks no metadata server and looks for no chip, and two may compile at a time.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# Matmuls for each tile in the kernels of jax's splash attention.
MATMULS_PER_KERNEL = {"fwd": 2, "dq": 3, "dkv": 4}


class CompileError(ValueError):
    """The compiler failed for another reason than memory."""


def compile_forecast(
    config: Config, forecast: Forecast, imports: Iterable[str] = ()
) -> Forecast:
    """The forecast with the compiler's numbers, if the machine has a compiler.

    Otherwise, and if the state alone does not fit, the method says why not.
    """
    machine = forecast.case.machine
    if machine.topology is None:
        reason = f"there is no compiler for {machine.name}"
    elif not ("TPU_LIBRARY_PATH" in os.environ or importlib.util.find_spec("libtpu")):
        reason = "libtpu, the compiler for TPUs, is missing: pip install 'lmx[tpu]'"
    elif _count_state(forecast) > machine.chip.memory:
        reason = "not compiled, since the state alone does not fit"
    else:
        return refine(forecast, run_compiler(config, forecast.case, imports))
    return dataclasses.replace(forecast, method=f"Analytic: {reason}")


def run_compiler(
    config: Config, case: Case, imports: Iterable[str] = ()
) -> CompileResult:
    """Compiles the training step of a case in a process of its own.

    Takes minutes, and gigabytes of memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        page, exchange = Path(folder) / "experiment.gin", Path(folder) / "exchange"
        page.write_text(to_gin(config), encoding="utf-8")
        request = {
            "config": str(page),
            "overrides": [
                *(f"Mesh.{axis}={size}" for axis, size in case.sizes.items()),
                f"Decoder.remat={case.remat}",
                f"Experiment.microbatches={case.microbatches}",
                f"Precision.compute={case.compute_dtype}",
            ],
            "imports": list(imports),
            "topology": case.machine.topology,
            "slices": case.machine.groups,
            "batch_shape": (case.sequences, case.sequence_length),
        }
        exchange.write_text(json.dumps(request))
        done = subprocess.run(
            [sys.executable, "-m", "lmx.plan.compiled.worker", str(exchange)],
            env={"LIBTPU_INIT_ARGS": TPU_FLAGS} | os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        if not done.returncode:
            return CompileResult.from_json(exchange.read_text())
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    raise CompileError(
        f"compiling for {case.machine.name} failed: {lines[-1]} (`lmx plan --analytic`"
        " compiles nothing)."
    )


def refine(forecast: Forecast, result: CompileResult) -> Forecast:
    """An analytic forecast with the compiler's numbers in place of its own.

    If the compiler refused, only the memory is replaced.
    """
    profile = result.profile
    if profile is None:
        return dataclasses.replace(
            forecast,
            method=f"Refused by {result.compiler}; all but memory is analytic",
            memory=MemoryUse(_parse_refusal(forecast, result.refusal or ""), {"": {}}),
        )
    uses = (_to_collective(forecast.case, use) for use in profile.collectives)
    collectives = tuple(sorted(uses, key=lambda each: -each.seconds))
    clock = forecast.case.machine.chip.clock
    assert clock
    kernels = _estimate_kernels(forecast, profile.kernels)
    return dataclasses.replace(
        forecast,
        method=f"Compiled by {result.compiler} in {result.seconds:.0f} s",
        memory=MemoryUse({k: float(v) for k, v in result.memory.items()}, {"": {}}),
        collectives=collectives,
        seconds=roofline.add_network(
            profile.matmul_cycles / clock + kernels,
            profile.other_cycles / clock,
            collectives,
        ),
        compiled=CompileCost(result.seconds, result.peak_memory),
        untimed_kernels=tuple(k for k in profile.kernels if not _count_matmuls(k)),
    )


def _estimate_kernels(forecast: Forecast, kernels: Mapping[str, int]) -> float:
    """Seconds of attention kernels, whose cycles no compiler counts."""
    case = forecast.case
    layers = sum(n for _, n in case.model.stack.kinds()) * case.microbatches
    runs = sum(n * _count_matmuls(name) for name, n in kernels.items()) / layers
    product = (forecast.flops.causal - forecast.flops.weights) / 6  # FLOPs of a matmul
    return roofline.estimate_attention(case, runs * product)


def _count_matmuls(name: str) -> int:
    """The matmuls of an attention kernel like that of queries and keys."""
    found = re.search(r"splash_\w*?(fwd|dq|dkv)", name)
    return MATMULS_PER_KERNEL[found[1]] if found else 0


def _to_collective(case: Case, use: CollectiveUse) -> Collective:
    """The axes are those along which the devices lie; the time is that of the links."""
    count = len(use.devices)
    positions = np.unravel_index(use.devices, tuple(case.sizes.values()))
    along = zip(case.sizes, positions, strict=True)
    axes = [axis for axis, at in along if len(set(at.tolist())) > 1]
    stride = min(np.diff(sorted(use.devices)).tolist(), default=1)
    gathers = {"all-reduce": 2.0, "reduce-scatter": float(count)}.get(use.kind, 1.0)
    size = gathers * use.bytes
    return Collective(
        kind=use.kind,
        axis="+".join(axes) or "itself",
        payload=f"{use.runs:,} times",
        bytes=size * (1 - 1 / count),
        seconds=case.machine.estimate_gather(size, count, stride) if axes else 0.0,
        overlapped=use.overlapped,
    )


def _count_state(forecast: Forecast) -> float:
    persistent = forecast.memory.persistent
    return persistent["parameters"] + persistent["optimizer state"]


def _parse_refusal(forecast: Forecast, refusal: str) -> dict[str, float]:
    """The bytes that a device needs, from the compiler's message."""
    if found := re.search(r"Used ([\d.]+)([KMGT]?) of", refusal):
        return {"needed by the compiler": float(found[1]) * UNITS[found[2]]}
    if found := re.search(r"temporaries \(([\d.]+)([KMGT]?)\) exceed", refusal):
        temporaries = float(found[1]) * UNITS[found[2]]
        return {"state": _count_state(forecast), "temporaries": temporaries}
    raise ValueError(f"the compiler's refusal has an unknown form: {refusal[:200]}")
