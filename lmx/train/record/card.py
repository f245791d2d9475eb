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

from lmx.config.names import find
from lmx.config.node import map_nodes
from lmx.config.tree import Config
from lmx.core import device
from lmx.train.record.account import total
from lmx.train.record.directory import last, rows
from lmx.train.run import Run

PACKAGES = ("lmx", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
FEW, APART = 64, 1.05  # losses of a card: so many, then each at so much later a step
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # what tells compilers how to compile


def card(name: str, config: Config, run: Run) -> dict[str, Any]:
    """The facts that `card.json` begins with."""
    return {
        "name": name,
        "run_id": config.run_id(),
        "digest": config.digest(),
        "seed": run.seed,
        "experiment": json.loads(config.json()),
        "imports": modules(config),
        "data": dict(run.data.fingerprint),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.like().params)),
        "tokens": run.tokens(run.steps),
        "flops": run.flops(run.steps),
        "mesh": axes(run),
        **ground(),
    }


def outcome(run: Run, path: Path) -> dict[str, Any]:
    """What a card ends with: figures of the finished run in a folder.

    `losses` are pairs of a step and its loss, `seconds` those of each state, and `mfu`
    the share of what its devices could do at most, in the steps that were kept.
    """
    seconds, peak = total(path), device.peak(run.mesh.size)
    training = sum(seconds.get(state, 0.0) for state in ("step", "data", "log"))
    known = {"mfu": run.flops(run.steps) / training / peak} if peak else {}
    return {
        "final": last(path),
        "losses": figures(rows(path)),
        "seconds": seconds,
        **known,
    }


def figures(lines: Iterable[Mapping[str, Any]]) -> list[tuple[int, float | str]]:
    """Logged losses, each with its step: the first few, then fewer, and the last."""
    found = [(row["step"], row["loss"]) for row in lines if "loss" in row]
    kept = found[:FEW]
    for pair in found[FEW:]:
        if pair[0] >= APART * kept[-1][0] or pair is found[-1]:
            kept.append(pair)
    return kept


def origin(config: Config, run: Run) -> dict[str, Any]:
    """What a saved state tells of the attempt that saved it."""
    known = ground()
    told = {name: known[name] for name in ("commit", "devices", "processes")}
    return {"run_id": config.run_id(), "mesh": axes(run), **told}


def axes(run: Run) -> dict[str, int]:
    """How many devices stand along each axis of the mesh that has more than one."""
    return {axis: size for axis, size in run.mesh.shape.items() if size > 1}


def modules(config: Config) -> dict[str, str]:
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


def ground() -> dict[str, Any]:
    """Machine, versions, command and commit: the same whatever this process does."""
    return {
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "processor": _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "flags": {name: os.environ[name] for name in FLAGS if name in os.environ},
        "command": sys.argv,
        **_code(),
    }


def _processor() -> str:
    """What the processor calls itself, as far as the system tells."""
    told = Path("/proc/cpuinfo")
    for line in told.read_text().splitlines() if told.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _code() -> dict[str, Any]:
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
STANDS = ("devices", "processes", "processor", "mesh", "versions", "flags")
BESIDE = ("imports", "python", "system", "commit", "uncommitted", "untracked")


def unlike(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """What two runs do not stand on alike, by name: on the one card, and on the other.

    The names of what decides the bits of a result come first, as in `STANDS`.
    """
    found = {}
    for name in (*STANDS, *BESIDE):
        was, now = (card.get(name) for card in (old, new))
        if isinstance(was, dict) and isinstance(now, dict):
            pairs = {
                f"{name}.{key}": (was.get(key), now.get(key)) for key in {**was, **now}
            }
        else:
            pairs = {name: (was, now)}
        found |= {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    return found


def decisive(name: str) -> bool:
    """Whether what `unlike` calls so decides the bits of a result."""
    return name.partition(".")[0] in STANDS
