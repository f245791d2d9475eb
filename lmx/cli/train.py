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

Many processes train one run if each is started with the same command, the run's folder
being on a disk that all share. SLURM, TPU pods and Kubernetes tell them of one another
(outside TPU nodes, that takes `pip install "jax[k8s]"`); elsewhere say who is who:

  SLURM   srun -N 4 --ntasks-per-node=1 lmx train X.gin Mesh.fsdp=8 --run /shared/x
  TPU     gcloud compute tpus tpu-vm ssh POD --worker=all --command="lmx train ..."
  GKE     a Job with completionMode: Indexed, parallelism and completions: 4, and
          command: [lmx, train, X.gin, --run, /shared/x]
  flags   lmx train X.gin --processes 2 --process 0 --coordinator node1:4321
          lmx train X.gin --processes 2 --process 1 --coordinator node1:4321

None starts before all are there. The first writes, and shows how far it is; a signal
to one stops all; if one is lost, the others exit with 75.
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
    group = parser.add_argument_group("many processes, where nothing else tells")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which this is, from 0")
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="where process 0 listens"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="for the other processes to come, at the start (300)",
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
        name = Path(file).stem
        folder = args.folder or Path("runs") / f"{name}-{config.run_id()}"
        return _joined(args, name, config, folder)
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


def _joined(args: argparse.Namespace, name: str, config: Config, folder: Path) -> int:
    """Trains as one of the processes there are, or alone."""
    from lmx.core import lobby, process

    try:
        seat = process.seat(args.process, args.processes, args.coordinator)
        facts = {"page": config.digest()}
        with process.joined(seat, facts, args.wait, refusals=ConfigError):
            if args.plan and not _fits(config, args.plan):
                return 1
            return _train(name, config, folder, as_json=args.json)
    except (lobby.LostError, lobby.SeatError) as error:
        print(f"error: {error}", file=sys.stderr)
        return lobby.AGAIN if isinstance(error, lobby.LostError) else 2


def _train(name: str, config: Config, folder: Path, *, as_json: bool) -> int:
    from lmx.core import process
    from lmx.train.attempt import attempt
    from lmx.train.guard.guard import FaultError
    from lmx.train.hooks.stop import StoppedError
    from lmx.train.record.directory import last
    from lmx.train.record.summary import summary

    try:
        attempt(name, config, folder)
    except StoppedError as stopped:
        if process.first():
            print(f"{stopped}; the same command goes on: {folder}", file=sys.stderr)
        return 128 + stopped.signum
    except FaultError as fault:
        if process.first():
            print(f"error: {fault}", file=sys.stderr)
        return fault.status
    if not process.first():
        return 0
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
