"""`lmx train`: runs an experiment, or goes on with it where it stopped."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lmx.cli.config import add_import, load_config
from lmx.config.registry import ConfigError
from lmx.config.value import Config, explain_errors

_ABOUT = """\
Trains an experiment in a folder of its own, runs/NAME-ID, where ID is a digest of what
decides its outcome. The same command again goes on where the run stopped, to the same
bits; with another mesh too. Ctrl-C saves first.

  lmx train experiments/quickstart.gin
  lmx train experiments/quickstart.gin Experiment.seed=1 Decoder.depth=6
  lmx train experiments/shakespeare_char.gin Text.path=input.txt --run runs/bard
  lmx train experiments/gpt2_124m.gin --plan       refuses what does not fit
  lmx train experiments/x.gin --restarts 20        starts it again whenever it dies
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
to one stops all; if one is lost, the others exit with 75. With --restarts in each, all
come back and go on: a process that dies is started again after 1, 2, 4, ... 60 s, until
it dies twice in one way with nothing saved between.

SIGTERM, Ctrl-C and a cloud's notice of maintenance end the step, save, and exit with
143 or 130; a second signal ends at once. launch/slurm.sh is a job of SLURM that goes
back in its queue until the run is done, and `lmx launch` hands it to sbatch. There srun
returns the highest status of all: 137 where one process was killed, not 75.
"""

LOCAL = "here"  # the devices at hand, for --plan


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
    add_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the words of `lmx train`."""
    parser.add_argument("words", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
    parser.add_argument("--run", dest="folder", type=Path, help="the run's folder")
    parser.add_argument(
        "--plan",
        nargs="?",
        const=LOCAL,
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
    _add_run_options(parser)
    add_import(parser)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds what says how a run is made to come to its end."""
    parser.add_argument(
        "--restarts",
        type=int,
        default=0,
        metavar="N",
        help="start again, up to N times, when the process dies or a restart may help",
    )
    parser.add_argument(
        "--grace",
        type=float,
        metavar="SECONDS",
        help="end so long after a signal, saved or not (default: once it is saved)",
    )
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="NAME",
        help="go on although this differs from what the run began with: a path, a"
        " Class.parameter, or data (may be repeated)",
    )


def run(args: argparse.Namespace) -> int:
    """Trains. Returns the exit status."""
    if args.restarts:
        return _supervise(args)
    try:
        config = load_trainable(args)
        set_tpu_flags()
        file = args.words[0]
        folder = args.folder or _default_folder(file, config.run_id())
        return _train_distributed(args, Path(file).stem, config, folder)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def load_trainable(args: argparse.Namespace) -> Config:
    """The experiment that the words ask for. Raises ConfigError if there is none."""
    file, *overrides = args.words
    config = load_config(file, overrides, args.imports)
    if config.name != "Experiment":
        raise ConfigError(
            f"{file} is @{config.name}, which has a model and no recipe: train an"
            " experiment, or go on with a run that was trained here."
        )
    enable_float64(config)
    return config


def check_plan(config: Config, machine: str) -> bool:
    """Whether the arithmetic of `lmx plan` says so; if not, says what would."""
    from lmx.plan import case, price, report, search, topology
    from lmx.plan.forecast import make_forecast

    with explain_errors(config):
        found = (
            topology.detect_machine()
            if machine == LOCAL
            else topology.parse_machine(machine)
        )
        opened = case.build_case(config.build(), found)
        said = make_forecast(opened, price.load_price(found.kind))
    if not said.fits:
        print(report.format_verdict(said, search.suggest(said)), file=sys.stderr)
    return said.fits


def _train_distributed(
    args: argparse.Namespace, name: str, config: Config, folder: Path
) -> int:
    """Trains as one of the processes there are, or alone."""
    from lmx.core import distributed, rendezvous

    try:
        seat = distributed.detect_cluster(
            args.process, args.processes, args.coordinator
        )
        facts = {"page": config.digest()}
        with distributed.distributed_session(
            seat, facts, args.wait, usage_errors=ConfigError
        ):
            if args.plan and not check_plan(config, args.plan):
                return 1
            _enable_compilation_cache()
            return _train(args, name, config, folder)
    except (rendezvous.PeerLostError, rendezvous.ClusterConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return (
            rendezvous.EXIT_RESTART
            if isinstance(error, rendezvous.PeerLostError)
            else 2
        )


def _supervise(args: argparse.Namespace) -> int:
    """The same command, with the run's folder named, in processes of its own."""
    from lmx.cli.supervise import Supervisor

    lmx = [sys.executable, "-m", "lmx.cli.main"]
    folder = args.folder
    if folder is None:
        imports = [word for module in args.imports for word in ("--import", module)]
        show = [*lmx, "config", "show", "--json", *args.words, *imports]
        asked = subprocess.run(show, stdout=subprocess.PIPE, text=True)
        if asked.returncode:
            return asked.returncode
        folder = _default_folder(args.words[0], json.loads(asked.stdout)["run_id"])
    words = [*args.typed, "--run", str(folder), "--restarts", "0"]  # the last counts
    return Supervisor([*lmx, *words], folder, args.restarts)()


def _default_folder(file: str, run_id: str) -> Path:
    return Path("runs") / f"{Path(file).stem}-{run_id}"


def _train(args: argparse.Namespace, name: str, config: Config, folder: Path) -> int:
    from lmx.core import distributed
    from lmx.run.run_dir import read_last_metrics
    from lmx.run.summary import format_summary
    from lmx.run.timing import read_process_start
    from lmx.train.guard.guard import FaultError
    from lmx.train.hooks.signals import StoppedError
    from lmx.train.trainer import RunOptions, train_run

    manner = RunOptions(read_process_start(), args.grace, tuple(args.accept))
    try:
        train_run(name, config, folder, manner)
    except StoppedError as stopped:
        if distributed.is_leader():
            print(f"{stopped}; the same command goes on: {folder}", file=sys.stderr)
        return 128 + stopped.signum
    except FaultError as fault:
        if distributed.is_leader():
            print(f"error: {fault}", file=sys.stderr)
        return fault.status
    if not distributed.is_leader():
        return 0
    if args.json:
        print(json.dumps({"run": str(folder), **read_last_metrics(folder)}))
    else:
        print(format_summary(folder))
    return 0


def set_tpu_flags() -> None:
    """Tells libtpu how to compile, before it is loaded, if nobody has."""
    from lmx.core.hardware import TPU_FLAGS

    os.environ.setdefault("LIBTPU_INIT_ARGS", TPU_FLAGS)


def _enable_compilation_cache() -> None:
    """Keeps compiled programs in the cache, for the next start, unless told where.

    Not on CPUs, whose programs are for one kind of CPU, and may be taken for those of
    another (https://github.com/jax-ml/jax/issues/38445). What cannot be read is made
    anew.
    """
    import jax

    from lmx.core.files import get_cache_dir

    told = "JAX_COMPILATION_CACHE_DIR" in os.environ
    if jax.default_backend() != "cpu" and not told:
        folder = get_cache_dir("programs")
        jax.config.update("jax_compilation_cache_dir", str(folder))


def enable_float64(config: Config) -> None:
    """Tells jax before anything is built, if the experiment asks for 64 bits."""
    import jax

    precision = config["model.precision"]
    if "float64" in precision.fields.values():
        jax.config.update("jax_enable_x64", True)
