"""Loads what a command names: a config file, a run, or a shipped experiment."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lmx.config.registry import ConfigError
from lmx.config.resolve import load
from lmx.config.value import Config


def load_config(
    name: str | Path, overrides: Sequence[str] = (), imports: Iterable[str] = ()
) -> Config[Any]:
    """The config in a file or of a shipped experiment, or the one that a run recorded.

    A run is a folder with an `experiment.json`. `imports` are modules of the user.
    """
    import_modules(imports)
    if not (Path(name) / "experiment.json").is_file():
        return load([name], overrides, root=_import_root())
    if overrides:
        raise ConfigError(
            f"override {overrides[0]!r}: {name} is a run, whose config is fixed: start"
            f" from its file, {Path(name) / 'experiment.gin'}"
        )
    from lmx.run.run_dir import read_config

    return read_config(Path(name))


def load_experiment(args: argparse.Namespace, extra: Sequence[str] = ()) -> Config[Any]:
    """The experiment that a command names first, and jax set up for its precision."""
    config = load_config(args.names[0], [*args.overrides, *extra], args.imports)
    if config.name != "Experiment":
        raise ConfigError(
            f"{args.names[0]} is @{config.name}, which has a model but no training"
            " recipe: name a config whose root is Experiment."
        )
    enable_float64(config)
    return config


def load_root(args: argparse.Namespace, root: Callable[..., Any]) -> Config[Any]:
    """The config that a command names first, whose root is not an experiment."""
    import_modules(args.imports)
    return load(args.names[:1], args.overrides, root=root)


def import_modules(modules: Iterable[str]) -> None:
    """Imports modules of the user, which may be in the working folder."""
    for module in modules:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f"--import {module}: {error}") from error


def set_tpu_flags() -> None:
    """Sets the compiler flags of libtpu before it is loaded, unless they are set."""
    from lmx.core.hardware import TPU_FLAGS

    os.environ.setdefault("LIBTPU_INIT_ARGS", TPU_FLAGS)


def enable_float64(config: Config) -> None:
    """Enables 64-bit types in jax, before anything is built, if a config uses them."""
    import jax

    precision = config["model.precision"]
    if "float64" in precision.fields.values():
        jax.config.update("jax_enable_x64", True)


def _import_root() -> Callable[..., Any]:
    """The root of every experiment; imported late, since it imports jax."""
    from lmx.train.experiment import Experiment

    return Experiment
