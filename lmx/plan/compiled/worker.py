"""The compiling process, the only one that loads libtpu.

`python -m lmx.plan.compiled.worker FILE` replaces the arguments of `compile_step`
in the file, as JSON, by the `CompileResult`.
"""

import importlib
import importlib.metadata
import json
import math
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmx.plan.compiled.hlo import parse_hlo
from lmx.plan.compiled.measure import CompileResult, measure

CHIPS_PER_HOST = 4  # as the compiler assumes


def compile_step(
    *,
    config: str,
    overrides: list[str],
    imports: list[str],
    topology: str,
    slices: int,
    batch_shape: Sequence[int],
) -> CompileResult:
    """Compiles one training step of an experiment for devices that are not here.

    `topology` has the chips of one slice, as in `v5e:16x16`; `batch_shape` is that of
    the global batch.
    """
    import jax
    from jax.experimental import topologies

    import lmx

    for module in imports:
        importlib.import_module(module)
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    sides = [int(side) for side in topology.split(":")[1].split("x")]
    if math.prod(sides) < CHIPS_PER_HOST:
        options["chips_per_host_bounds"] = [*sides, 1][:3]
    description = topologies.get_topology_desc(topology, platform="tpu", **options)
    devices = description.devices
    experiment = lmx.load_experiment(config, overrides).build()
    lowered = experiment.build_program(devices).lower(*batch_shape)
    start, refusal, memory, profile = time.monotonic(), None, {}, None
    try:
        compiled = lowered.compile()
        memory = _describe_memory(compiled.memory_analysis())
        first = range(0, len(devices), len(devices) // slices)
        seconds = time.monotonic() - start
        profile = measure(parse_hlo(compiled.as_text() or ""), first)
    except jax.errors.JaxRuntimeError as error:
        if "memory" not in str(error):
            raise
        seconds, refusal = time.monotonic() - start, str(error)
    return CompileResult(
        compiler=f"libtpu {_find_version()}",
        seconds=seconds,
        peak_memory=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        refusal=refusal,
        memory=memory,
        profile=profile,
    )


def _describe_memory(analysis: Any) -> dict[str, int]:
    """Bytes on a device; outputs that alias inputs count once."""
    return {
        "state and batch": analysis.argument_size_in_bytes,
        "new outputs": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "program": analysis.generated_code_size_in_bytes,
    }


def _find_version() -> str:
    """The version of libtpu, installed as a package or in TPU_LIBRARY_PATH."""
    library = os.environ.get("TPU_LIBRARY_PATH")
    if library is None:
        return importlib.metadata.version("libtpu")
    packages = Path(library).parents[1].glob("libtpu-*.dist-info")
    return next((path.stem.split("-")[1] for path in packages), library)


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(compile_step(**json.loads(file.read_text())).to_json())
