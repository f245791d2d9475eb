"""A case compiled by the real compiler of its machine, in a process of its own."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from lmx.config.format import to_gin
from lmx.config.value import Config
from lmx.core.hardware import TPU_FLAGS
from lmx.plan.case import Case
from lmx.plan.compiled import refine
from lmx.plan.compiled.worker import CompileRequest, CompileResult
from lmx.plan.forecast import Forecast

# No metadata server is asked, no chip is looked for, and two may compile at a time.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class CompileError(ValueError):
    """The compiler failed for another reason than memory."""


def compile_forecast(
    config: Config, said: Forecast, imports: Iterable[str] = ()
) -> Forecast:
    """The forecast with the compiler's numbers, where there is one for the machine.

    Where there is none, or where the state alone leaves no hope, it says so.
    """
    always, case = said.memory.persistent, said.case
    state = always["parameters"] + always["optimizer state"]
    if case.machine.topology is None:
        why = f"no compiler for {case.machine.name} is at hand"
    elif not ("TPU_LIBRARY_PATH" in os.environ or importlib.util.find_spec("libtpu")):
        why = (
            "libtpu, which compiles for TPUs, is not installed: pip install 'lmx[tpu]'"
        )
    elif state > case.machine.chip.memory:
        why = "nothing was compiled, since the state alone does not fit"
    else:
        return refine.refine(said, run_compiler(config, case, imports))
    return dataclasses.replace(said, method=f"Analytic: {why}")


def run_compiler(
    config: Config, case: Case, imports: Iterable[str] = ()
) -> CompileResult:
    """What the compiler says of the step of an experiment, as the case has it.

    Takes minutes, and gigabytes of memory here.
    """
    assert case.machine.topology
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "experiment.gin"
        page.write_text(to_gin(config), encoding="utf-8")
        asked = CompileRequest(
            config=str(page),
            overrides=_format_settings(case),
            imports=list(imports),
            topology=case.machine.topology,
            slices=case.machine.groups,
            sequences=case.sequences,
            sequence_length=case.sequence_length,
        )
        done = subprocess.run(
            [sys.executable, "-m", "lmx.plan.compiled.worker"],
            input=json.dumps(dataclasses.asdict(asked)),
            env={"LIBTPU_INIT_ARGS": TPU_FLAGS} | os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise CompileError(
            f"compiling for {case.machine.name} failed: {lines[-1]} (`lmx plan"
            " --analytic` does without)."
        )
    return CompileResult.from_json(done.stdout.splitlines()[-1])


def _format_settings(case: Case) -> list[str]:
    """The settings of the case, as on the command line."""
    return [
        *(f"Mesh.{axis}={size}" for axis, size in case.sizes.items()),
        f"Decoder.remat={case.remat}",
        f"Experiment.microbatches={case.microbatches}",
        f"Precision.compute={case.compute_dtype}",
    ]
