"""Run metadata: the environment and the provenance of a run, and its results."""

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from lmx.config.value import Config
from lmx.core import hardware
from lmx.run.goodput import TRAINING_PHASES, total_seconds
from lmx.run.run_dir import SCHEMA, read_last_metrics, read_metrics
from lmx.run.user_code import digest_modules

PACKAGES = ("lmx", "jax", "jaxlib", "flax", "optax", "numpy")
COMPILER_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# Losses in the metadata: the first ones, then one each time the step grew by this.
DENSE_LOSSES, LOSS_SPACING = 64, 1.05
# The fields that two runs are compared by; the first ones affect the bits of results.
AFFECTS_BITS = ("devices", "processes", "processor", "mesh", "versions", "flags")
ORIGIN = ("run_id", "mesh", "commit", "devices", "processes")  # in each checkpoint
INFORMATIVE = ("imports", "python", "system", "commit", "uncommitted", "untracked")


def initial_metadata(
    name: str, config: Config, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """What `metadata.json` has when a run starts; `facts` are added to it."""
    return {
        "schema": SCHEMA,
        "name": name,
        "run_id": config.run_id(),
        "digest": config.digest(),
        "experiment": json.loads(config.to_json()),
        "imports": digest_modules(config),
        **facts,
        **describe_environment(),
    }


def final_metadata(path: Path, flops: float, devices: int) -> dict[str, Any]:
    """What `metadata.json` has in addition when the run is finished.

    `losses` are pairs of step and loss, `seconds` those of each phase. `mfu` is the
    share of the peak FLOPs of the devices, in the steps that were not repeated.
    """
    seconds, peak = total_seconds(path), hardware.peak_flops(devices)
    training = sum(seconds.get(phase, 0.0) for phase in TRAINING_PHASES)
    return {
        "final": read_last_metrics(path),
        "losses": sample_losses(read_metrics(path)),
        "seconds": seconds,
        **({"mfu": flops / training / peak} if peak else {}),
    }


def sample_losses(rows: Iterable[Mapping[str, Any]]) -> list[tuple[int, float | str]]:
    """Some logged losses, each with its step; the first ones and the last included."""
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    sampled = losses[:DENSE_LOSSES]
    for pair in losses[DENSE_LOSSES:]:
        if pair[0] >= LOSS_SPACING * sampled[-1][0] or pair is losses[-1]:
            sampled.append(pair)
    return sampled


def mesh_axes(mesh: jax.sharding.Mesh) -> dict[str, int]:
    """The size of each axis of the mesh that has more than one device."""
    return {axis: size for axis, size in mesh.shape.items() if size > 1}


def describe_environment() -> dict[str, Any]:
    """Machine, versions, command and commit."""
    return {
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "processor": _get_processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "flags": {n: os.environ[n] for n in COMPILER_FLAGS if n in os.environ},
        "command": sys.argv,
        **_describe_code(),
    }


def _get_processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _describe_code() -> dict[str, Any]:
    """The commit, changes and new files of lmx; None outside a git repository."""

    def git(*args: str) -> str | None:
        command = shlex.join(["git", "-C", f"{Path(__file__).parents[1]}", *args])
        status, output = subprocess.getstatusoutput(f"{command} 2>/dev/null")
        return None if status else output.strip()

    new = git("ls-files", "--others", "--exclude-standard", "--", ".")
    return {
        "commit": git("rev-parse", "HEAD"),
        "uncommitted": git("diff", "HEAD", "--", "."),
        "untracked": None if new is None else new.splitlines(),
    }


def diff_metadata(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Differences of two environments: (old, new) by name, `AFFECTS_BITS` first."""
    pairs: dict[str, tuple[Any, Any]] = {}
    for name in (*AFFECTS_BITS, *INFORMATIVE):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            for key in {**before, **after}:
                pairs[f"{name}.{key}"] = (before.get(key), after.get(key))
        else:
            pairs[name] = (before, after)
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def affects_bits(name: str) -> bool:
    """Whether a difference of that name changes the bits of results."""
    return name.partition(".")[0] in AFFECTS_BITS
