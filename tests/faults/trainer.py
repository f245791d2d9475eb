"""`lmx train` of the tiny experiment, as processes that faults can be done to."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0  # seconds, on a machine that has much else to do
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
MAIN = ("-m", "lmx.cli.main")


def place(work: Path) -> Path:
    """The folder, with the page of the experiment in it."""
    shutil.copy(ROOT / "tests" / "train" / "tiny.gin", work)
    return work


def start(
    work: Path, name: str, *words: str, program: tuple[str, ...] = MAIN
) -> subprocess.Popen:
    """Trains the run of that name in the folder, on one device."""
    return subprocess.Popen(
        [sys.executable, *program, "train", "tiny.gin", *words, "--run", name],
        env={**os.environ, "PYTHONPATH": f"{ROOT}", "XLA_FLAGS": FAST}
        | {"JAX_PLATFORMS": "cpu"},
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """The status of a process that comes to its end, and what it moaned."""
    _, moaned = process.communicate(timeout=PATIENCE)
    return process.returncode, moaned
