"""What a run stands on: versions, machine, commit."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from lmx.config.tree import Config
from lmx.train.run import Run

PACKAGES = ("lmx", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def card(name: str, config: Config, run: Run) -> dict[str, Any]:
    """The facts that `card.json` begins with."""
    return {
        "name": name,
        "run_id": config.run_id(),
        "digest": config.digest(),
        "data": dict(run.data.fingerprint),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.like().params)),
        "tokens": run.tokens(run.steps),
        "flops": run.flops(run.steps),
        "devices": _devices(),
        "mesh": _mesh(run),
        **ground(),
    }


def origin(config: Config, run: Run) -> dict[str, Any]:
    """What a saved state tells of the attempt that saved it."""
    return {
        "run_id": config.run_id(),
        "commit": _code()[0],
        "devices": _devices(),
        "processes": jax.process_count(),
        "mesh": _mesh(run),
    }


def _devices() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _mesh(run: Run) -> dict[str, int]:
    return {axis: size for axis, size in run.mesh.shape.items() if size > 1}


def ground() -> dict[str, Any]:
    """Versions, command and commit: the same for whatever this process does."""
    commit, changes = _code()
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "command": sys.argv,
        "commit": commit,
        "uncommitted": changes,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _code() -> tuple[str | None, str | None]:
    """The commit of lmx's own source and what was changed since; None outside git."""
    here = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *words], capture_output=True, text=True
            )
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    return git("rev-parse", "HEAD"), git("diff", "HEAD", "--", ".")
