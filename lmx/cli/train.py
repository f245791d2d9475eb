"""`lmx train`: runs an experiment, or goes on with it where it stopped."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from lmx.cli.config import add_import, load_words
from lmx.config.names import ConfigError
from lmx.config.tree import Config, explained

_ABOUT = """\
Trains an experiment in a folder of its own, runs/NAME-ID, where ID is a digest of what
decides its outcome. The same command again goes on where the run stopped, to the same
bits; with another mesh too. Ctrl-C saves first.

  lmx train experiments/quickstart.gin
  lmx train experiments/quickstart.gin Experiment.seed=1 Decoder.depth=6
  lmx train experiments/shakespeare_char.gin Text.path=input.txt --run runs/bard
  lmx train experiments/gpt2_124m.gin --plan       refuses what does not fit
  lmx config show experiments/quickstart.gin       what can be set, and how it is
"""

HERE = "here"  # the devices at hand, for --plan


def add(parsers: Any) -> None:
    """Adds the verb `train` to what `ArgumentParser.add_subparsers` returned."""
    parser = parsers.add_parser(
        "train",
        help="train an experiment, or go on with it",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="lmx train EXPERIMENT.gin [Name.parameter=value ...] [options]",
    )
    parser.set_defaults(run=run)
    parser.add_argument("words", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
    parser.add_argument("--run", dest="folder", type=Path, help="the run's folder")
    parser.add_argument(
        "--plan",
        nargs="?",
        const=HERE,
        metavar="MACHINE",
        help="refuse to start what does not fit MACHINE, or the devices at hand",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the summary for a machine"
    )
    add_import(parser)


def run(args: argparse.Namespace) -> int:
    """Trains. Returns the exit status."""
    file, *overrides = args.words
    try:
        config = load_words(file, overrides, args.imports)
        if config.name != "Experiment":
            raise ConfigError(
                f"{file} is @{config.name}, which has a model and no recipe: train an"
                " experiment, or go on with a run that was trained here."
            )
        _allow_float64(config)
        _set_flags()
        if args.plan and not _fits(config, args.plan):
            return 1
        name = Path(file).stem
        folder = args.folder or Path("runs") / f"{name}-{config.run_id()}"
        return _train(name, config, folder, as_json=args.json)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _fits(config: Config, machine: str) -> bool:
    """Whether the arithmetic of `lmx plan` says so; if not, says what would."""
    from lmx.plan import case, price, report, search, topology
    from lmx.plan.forecast import forecast

    with explained(config):
        found = topology.at_hand() if machine == HERE else topology.named(machine)
        opened = case.opened(config.build(), found)
        said = forecast(opened, price.of(found.kind))
    if not said.fits:
        print(report.verdict(said, search.remedies(said)), file=sys.stderr)
    return said.fits


def _train(name: str, config: Config, folder: Path, *, as_json: bool) -> int:
    from lmx.train.attempt import attempt
    from lmx.train.hooks import StoppedError
    from lmx.train.record.directory import last
    from lmx.train.record.summary import summary

    try:
        attempt(name, config, folder)
    except StoppedError as stopped:
        print(f"{stopped}; the same command goes on: {folder}", file=sys.stderr)
        return 128 + stopped.signum
    if as_json:
        print(json.dumps({"run": str(folder), **last(folder)}))
    else:
        print(summary(folder))
    return 0


def _set_flags() -> None:
    """Tells libtpu how to compile, before it is loaded, if nobody has."""
    from lmx.core.device import TPU_FLAGS

    os.environ.setdefault("LIBTPU_INIT_ARGS", TPU_FLAGS)


def _allow_float64(config: Config) -> None:
    """Tells jax before anything is built, if the experiment asks for 64 bits."""
    import jax

    precision = config["model.precision"]
    if "float64" in precision.fields.values():
        jax.config.update("jax_enable_x64", True)
