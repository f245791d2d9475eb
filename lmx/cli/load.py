"""Loads what a command names: a config file, a run, or a shipped experiment."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmx.config.gin import parse
from lmx.config.registry import require
from lmx.config.resolve import apply_overrides, resolve
from lmx.config.value import Config

ROOT = "Experiment"  # the root of a config, but for those of `lmx data` and sweeps
# What to write for a config of another root.
COMMANDS = {"Experiment": "lmx train", "Sweep": "lmx sweep run"}


def load_config(
    name: str | Path, overrides: Sequence[str] = (), root: str | None = None
) -> Config[Any]:
    """The config in a file, of a shipped experiment, or of a run, with overrides.

    A run is a folder with an `experiment.json`, whose root is `ROOT`, the default.
    Refuses a config that sets another root, and not this one.
    """
    if root is None and (Path(name) / "experiment.json").is_file():
        from lmx.run.run_dir import read_config

        return apply_overrides(read_config(Path(name)), overrides)
    root, bindings = root or ROOT, parse([name], overrides)
    roots = {key.name for key in bindings if key.parameter}
    for other, command in COMMANDS.items():
        message = f"{name} is a config of @{other}, not of @{root}: {command} {name}"
        require(root in roots or other not in roots, f"{message} trains it.")
    return resolve(bindings, root)


def load_experiment(args: argparse.Namespace, extra: Sequence[str] = ()) -> Config[Any]:
    """The experiment that a command names first, and jax set up for it."""
    config = load_config(args.names[0], [*args.overrides, *extra])
    require(
        config.name == ROOT,
        f"{args.names[0]} is @{config.name}, which has a model but no training recipe:"
        f" name a config whose root is {ROOT}.",
    )
    from lmx.core.hardware import set_up_jax

    set_up_jax(config)
    return config


def load_root(args: argparse.Namespace, root: str) -> Config[Any]:
    """The config that a command names first, with another root."""
    return load_config(args.names[0], args.overrides, root)
