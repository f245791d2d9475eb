"""Compiles a case with the compiler of its machine and refines the forecast with it.

`python -m lmx.plan.compile FILE` is the compiling process, the only one that loads
libtpu. It replaces the arguments of `compile_step` in the file by its result, as JSON.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from lmx.config.resolve import apply_overrides, from_json
from lmx.config.value import Config
from lmx.core.hardware import TPU_FLAGS
from lmx.plan import roofline
from lmx.plan.case import Case
from lmx.plan.forecast import Forecast
from lmx.plan.hlo import CollectiveUse, CompileResult, measure, parse_hlo
from lmx.plan.memory import MemoryUse

# libtpu asks no metadata server and looks for no chip, and two may compile at a time.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
CHIPS_PER_HOST = 4  # as the compiler assumes
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# Matmuls per tile in the kernels of jax's splash attention.
MATMULS_PER_KERNEL = {"fwd": 2, "dq": 3, "dkv": 4}


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

    Takes minutes, and gigabytes of memory. Raises ValueError if the compiler fails for
    another reason than memory.
    """
    overrides = [
        *(f"Mesh.{axis}={size}" for axis, size in case.sizes.items()),
        f"Decoder.remat={case.remat}",
        f"Experiment.microbatches={case.microbatches}",
        f"Precision.compute={case.compute_dtype}",
    ]
    request = {
        "config": apply_overrides(config, overrides).to_json(),
        "imports": list(imports),
        "topology": case.machine.topology,
        "slices": case.machine.groups,
        "batch_shape": (case.sequences, case.sequence_length),
    }
    with tempfile.TemporaryDirectory() as folder:
        exchange = Path(folder) / "exchange"
        exchange.write_text(json.dumps(request))
        done = subprocess.run(
            [sys.executable, "-m", "lmx.plan.compile", str(exchange)],
            env={"LIBTPU_INIT_ARGS": TPU_FLAGS} | os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        if not done.returncode:
            result = json.loads(exchange.read_text())
            hlo, first = result.pop("hlo"), range(0, case.devices, case.machine.group)
            profile = measure(parse_hlo(hlo), first) if hlo else None
            return CompileResult(**result, profile=profile)
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    raise ValueError(
        f"compiling for {case.machine.name} failed: {lines[-1]} (`lmx plan --analytic`"
        " compiles nothing)."
    )


def compile_step(
    *,
    config: str,
    imports: Iterable[str],
    topology: str,
    slices: int,
    batch_shape: Sequence[int],
) -> dict[str, Any]:
    """Compiles one training step of an experiment for devices that are not here.

    `config` is JSON; `topology` has the chips of one slice, as in `v5e:16x16`;
    `batch_shape` is that of the global batch. Returns the fields of `CompileResult`,
    and the program as HLO text in place of its profile.
    """
    for module in imports:
        importlib.import_module(module)
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    sides = [int(side) for side in topology.split(":")[1].split("x")]
    if math.prod(sides) < CHIPS_PER_HOST:
        options["chips_per_host_bounds"] = [*sides, 1][:3]
    devices = topologies.get_topology_desc(topology, platform="tpu", **options).devices
    program = from_json(config).build().build_program(devices)
    lowered = program.lower(*batch_shape)
    start, refusal, memory, hlo = time.monotonic(), "", {}, None
    try:
        compiled = lowered.compile()
        hlo, found = compiled.as_text(), compiled.memory_analysis()
        new_outputs = found.output_size_in_bytes - found.alias_size_in_bytes
        memory = {
            "state and batch": float(found.argument_size_in_bytes),
            "new outputs": float(new_outputs),  # those that alias inputs count once
            "temporaries": float(found.temp_size_in_bytes),
            "program": float(found.generated_code_size_in_bytes),
        }
    except jax.errors.JaxRuntimeError as error:
        if "memory" not in str(error):
            raise
        refusal = str(error)
    return {
        "compiler": f"libtpu {_find_version()}",
        "seconds": time.monotonic() - start,
        "peak_memory": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "memory": memory,
        "refusal": refusal,
        "hlo": hlo,
    }


def _find_version() -> str:
    """The version of libtpu, installed as a package or in TPU_LIBRARY_PATH."""
    library = os.environ.get("TPU_LIBRARY_PATH")
    if library is None:
        return importlib.metadata.version("libtpu")
    packages = Path(library).parents[1].glob("libtpu-*.dist-info")
    return next((path.stem.split("-")[1] for path in packages), library)


def refine(forecast: Forecast, result: CompileResult) -> Forecast:
    """An analytic forecast with the compiler's numbers in place of its own.

    If the compiler refused, only the memory is replaced.
    """
    profile = result.profile
    if profile is None:
        return dataclasses.replace(
            forecast,
            method=f"Refused by {result.compiler}; all but memory is analytic",
            memory=MemoryUse(_parse_refusal(forecast, result.refusal), {"": {}}),
        )
    uses = (_to_collective(forecast.case, use) for use in profile.collectives)
    collectives = tuple(sorted(uses, key=lambda each: -each.seconds))
    clock = forecast.case.machine.chip.clock
    assert clock
    kernels = _estimate_kernels(forecast, profile.kernels)
    return dataclasses.replace(
        forecast,
        method=f"Compiled by {result.compiler} in {result.seconds:.0f} s",
        memory=MemoryUse(result.memory, {"": {}}),
        collectives=collectives,
        seconds=roofline.StepTime.build(
            profile.matmul_cycles / clock + kernels,
            profile.other_cycles / clock,
            collectives,
        ),
        compile_cost={"seconds": result.seconds, "peak_memory": result.peak_memory},
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
    """The matmuls of an attention kernel, each of the size of Q K^T."""
    found = re.search(r"splash_\w*?(fwd|dq|dkv)", name)
    return MATMULS_PER_KERNEL[found[1]] if found else 0


def _to_collective(case: Case, use: CollectiveUse) -> roofline.Collective:
    """Infers mesh axes from the positions of the devices, and time from the links."""
    count = len(use.devices)
    positions = np.unravel_index(use.devices, tuple(case.sizes.values()))
    along = zip(case.sizes, positions, strict=True)
    axes = [axis for axis, at in along if len(set(at.tolist())) > 1]
    stride = min(np.diff(sorted(use.devices)).tolist(), default=1)
    gathers = {"all-reduce": 2.0, "reduce-scatter": float(count)}.get(use.kind, 1.0)
    size = gathers * use.bytes
    return roofline.Collective(
        kind=use.kind,
        axis="+".join(axes) or "itself",
        payload=f"{use.runs:,} times",
        bytes=size * (1 - 1 / count),
        seconds=case.machine.estimate_gather(size, count, stride) if axes else 0.0,
        overlapped=use.overlapped,
    )


def _count_state(forecast: Forecast) -> float:
    return sum(float(tensor.local_bytes) for tensor in forecast.tensors)


def _parse_refusal(forecast: Forecast, refusal: str) -> dict[str, float]:
    """The bytes that a device needs, from the compiler's message."""
    if found := re.search(r"Used ([\d.]+)([KMGT]?) of", refusal):
        return {"needed by the compiler": float(found[1]) * UNITS[found[2]]}
    if found := re.search(r"temporaries \(([\d.]+)([KMGT]?)\) exceed", refusal):
        temporaries = float(found[1]) * UNITS[found[2]]
        return {"state": _count_state(forecast), "temporaries": temporaries}
    raise ValueError(f"the compiler's refusal has an unknown form: {refusal[:200]}")


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(json.dumps(compile_step(**json.loads(file.read_text()))))
