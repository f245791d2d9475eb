"""The process that compiles: the one place where libtpu is loaded.

`python -m lmx.plan.compiled.worker` reads an `Asked` as JSON and prints an `Answer`.
"""

import dataclasses
import importlib
import importlib.metadata
import json
import math
import os
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmx.plan.compiled.hlo import parse_hlo
from lmx.plan.compiled.measure import CollectiveUse, StepProfile, measure

CHIPS_PER_HOST = 4  # chips that the compiler takes a host to have


@dataclass(frozen=True, kw_only=True)
class CompileRequest:
    """What is to be compiled.

    Attributes:
        page: a `.gin` file.
        words: overrides, as on the command line.
        imports: modules of the user that the page names classes of.
        topology: chips of one slice, as in `v5e:16x16`.
        rows, length: of the global batch.
    """

    config: str
    overrides: list[str]
    imports: list[str]
    topology: str
    slices: int
    sequences: int
    sequence_length: int


@dataclass(frozen=True, kw_only=True)
class CompileResult:
    """What came of it.

    Attributes:
        refused: why there is no program, in the words of the compiler: it does not fit.
        memory: bytes on a device, by what they are for.
        seconds: that it took to compile.
        peak: bytes of memory that this took here.
    """

    compiler: str
    seconds: float
    peak_memory: int
    refusal: str | None = None
    memory: dict[str, int] = field(default_factory=dict)
    profile: StepProfile | None = None

    @classmethod
    def from_json(cls, text: str) -> "CompileResult":
        """The answer of a line of JSON."""
        plain = json.loads(text)
        if plain["profile"]:
            products, passes, kernels, told = plain["profile"]
            told = [CollectiveUse(k, tuple(m), b, t, h) for k, m, b, t, h in told]
            plain["profile"] = StepProfile(products, passes, kernels, told)
        return cls(**plain)


def compile_step(asked: CompileRequest) -> CompileResult:
    """Compiles one training step for devices that are not here."""
    import jax
    from jax.experimental import topologies

    import lmx

    for module in asked.imports:
        importlib.import_module(module)
    devices = topologies.get_topology_desc(
        asked.topology, platform="tpu", **_topology_options(asked)
    ).devices
    slices = range(0, len(devices), len(devices) // asked.slices)
    experiment = lmx.load_experiment(asked.config, asked.overrides).build()
    program = experiment.build_program(devices)
    lowered = program.lower(asked.sequences, asked.sequence_length)
    began, refused, made = time.monotonic(), None, None
    try:
        made = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "memory" not in str(error):
            raise
        refused = str(error)
    return CompileResult(
        compiler=f"libtpu {_libtpu_version()}",
        seconds=time.monotonic() - began,
        peak_memory=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        refusal=refused,
        memory=_memory_parts(made.memory_analysis()) if made else {},
        profile=measure(parse_hlo(made.as_text() or ""), slices) if made else None,
    )


def _topology_options(asked: CompileRequest) -> dict[str, Any]:
    """What the name of a topology leaves open."""
    shape: dict[str, Any] = {"num_slices": asked.slices} if asked.slices > 1 else {}
    sides = [int(side) for side in asked.topology.split(":")[1].split("x")]
    if math.prod(sides) < CHIPS_PER_HOST:
        shape["chips_per_host_bounds"] = [*sides, 1][:3]
    return shape


def _memory_parts(said: Any) -> dict[str, int]:
    """Bytes on a device: what goes in lives on in what comes out."""
    new = said.output_size_in_bytes - said.alias_size_in_bytes
    return {
        "state and batch": said.argument_size_in_bytes,
        "results beside the state": new,
        "in between": said.temp_size_in_bytes,
        "program": said.generated_code_size_in_bytes,
    }


def _libtpu_version() -> str:
    """Of the libtpu that compiled, installed as a package or anywhere."""
    library = os.environ.get("TPU_LIBRARY_PATH")
    if library is None:
        return importlib.metadata.version("libtpu")
    beside = Path(library).parents[1].glob("libtpu-*.dist-info")
    return next((path.stem.split("-")[1] for path in beside), library)


if __name__ == "__main__":
    found = compile_step(CompileRequest(**json.load(sys.stdin)))
    print(json.dumps(dataclasses.asdict(found)))
