"""What a run stands on: versions, machine, commit."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from lmx.config.node import map_nodes
from lmx.config.registry import find
from lmx.config.value import Config
from lmx.core import hardware
from lmx.run.run_dir import read_last_metrics, read_metrics
from lmx.run.timing import total_seconds
from lmx.train.program import RunContext

PACKAGES = ("lmx", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
DENSE_LOSSES, LOSS_SPACING = (
    64,
    1.05,
)  # losses of a card: so many, then each at so much later a step
COMPILER_FLAGS = (
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
)  # what tells compilers how to compile


def initial_metadata(name: str, config: Config, run: RunContext) -> dict[str, Any]:
    """The facts that `card.json` begins with."""
    return {
        "name": name,
        "run_id": config.run_id(),
        "digest": config.digest(),
        "seed": run.seed,
        "experiment": json.loads(config.to_json()),
        "imports": find_user_modules(config),
        "data": dict(run.data.fingerprint),
        "parameters": sum(
            leaf.size for leaf in jax.tree.leaves(run.abstract_state().params)
        ),
        "tokens": run.count_tokens(run.steps),
        "flops": run.count_flops(run.steps),
        "mesh": mesh_axes(run),
        **describe_environment(),
    }


def final_metadata(run: RunContext, path: Path) -> dict[str, Any]:
    """What a card ends with: figures of the finished run in a folder.

    `losses` are pairs of a step and its loss, `seconds` those of each state, and `mfu`
    the share of what its devices could do at most, in the steps that were kept.
    """
    seconds, peak = total_seconds(path), hardware.peak_flops(run.mesh.size)
    training = sum(seconds.get(state, 0.0) for state in ("step", "data", "log"))
    known = {"mfu": run.count_flops(run.steps) / training / peak} if peak else {}
    return {
        "final": read_last_metrics(path),
        "losses": sample_losses(read_metrics(path)),
        "seconds": seconds,
        **known,
    }


def sample_losses(lines: Iterable[Mapping[str, Any]]) -> list[tuple[int, float | str]]:
    """Logged losses, each with its step: the first few, then fewer, and the last."""
    found = [(row["step"], row["loss"]) for row in lines if "loss" in row]
    kept = found[:DENSE_LOSSES]
    for pair in found[DENSE_LOSSES:]:
        if pair[0] >= LOSS_SPACING * kept[-1][0] or pair is found[-1]:
            kept.append(pair)
    return kept


def describe_origin(config: Config, run: RunContext) -> dict[str, Any]:
    """What a saved state tells of the attempt that saved it."""
    known = describe_environment()
    told = {name: known[name] for name in ("commit", "devices", "processes")}
    return {"run_id": config.run_id(), "mesh": mesh_axes(run), **told}


def mesh_axes(run: RunContext) -> dict[str, int]:
    """How many devices stand along each axis of the mesh that has more than one."""
    return {axis: size for axis, size in run.mesh.shape.items() if size > 1}


def find_user_modules(config: Config) -> dict[str, str]:
    """The user's own modules that a configuration names classes of, with SHA-256."""
    found: dict[str, str] = {}

    def visit(node: Config) -> None:
        module = find(node.name, "card").__module__
        spec = importlib.util.find_spec(module)
        if module.split(".")[0] != "lmx" and spec and spec.origin:
            content = Path(spec.origin).read_bytes()
            found[module] = hashlib.sha256(content).hexdigest()
        for value in node.fields.values():
            map_nodes(value, visit)

    visit(config)
    return found


def describe_environment() -> dict[str, Any]:
    """Machine, versions, command and commit: the same whatever this process does."""
    return {
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "processor": _get_processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _get_version(name) for name in PACKAGES},
        "flags": {
            name: os.environ[name] for name in COMPILER_FLAGS if name in os.environ
        },
        "command": sys.argv,
        **_describe_code(),
    }


def _get_processor() -> str:
    """What the processor calls itself, as far as the system tells."""
    told = Path("/proc/cpuinfo")
    for line in told.read_text().splitlines() if told.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _get_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _describe_code() -> dict[str, Any]:
    """The commit of lmx's own source, what was changed since and which files are new.

    None outside git.
    """
    here = Path(__file__).parents[2]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *words], capture_output=True, text=True
            )
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    new = git("ls-files", "--others", "--exclude-standard", "--", ".")
    return {
        "commit": git("rev-parse", "HEAD"),
        "uncommitted": git("diff", "HEAD", "--", "."),
        "untracked": None if new is None else new.splitlines(),
    }


# What of a card says where and with what a run was made, and what of that decides bits.
AFFECTS_BITS = ("devices", "processes", "processor", "mesh", "versions", "flags")
INFORMATIVE = ("imports", "python", "system", "commit", "uncommitted", "untracked")


def diff_metadata(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """What two runs do not stand on alike, by name: on the one card, and on the other.

    The names of what decides the bits of a result come first, as in `AFFECTS_BITS`.
    """
    found = {}
    for name in (*AFFECTS_BITS, *INFORMATIVE):
        was, now = (card.get(name) for card in (old, new))
        if isinstance(was, dict) and isinstance(now, dict):
            pairs = {
                f"{name}.{key}": (was.get(key), now.get(key)) for key in {**was, **now}
            }
        else:
            pairs = {name: (was, now)}
        found |= {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    return found


def affects_bits(name: str) -> bool:
    """Whether what `unlike` calls so decides the bits of a result."""
    return name.partition(".")[0] in AFFECTS_BITS
