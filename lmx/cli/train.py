"""`lmx train`: trains an experiment, or resumes it."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from lmx.cli.command import Command
from lmx.cli.load import load_experiment, set_tpu_flags
from lmx.cli.plan import LOCAL, predict
from lmx.config.registry import ConfigError
from lmx.config.value import Config

_ABOUT = """\
Trains an experiment in a folder of its own, runs/NAME-ID, where ID is a digest of all
settings that affect the result. The same command resumes a stopped run, with the same
result to the bit; a resumed run may use another mesh. Ctrl-C saves a checkpoint first.

  lmx train quickstart                             an experiment that ships with lmx
  lmx train quickstart Experiment.seed=1 Decoder.depth=6
  lmx train experiments/shakespeare_char.gin Text.path=input.txt --run runs/bard
  lmx train gpt2_124m Text.path=fineweb --plan     refuses what does not fit in memory
  lmx train quickstart --restarts 20               restarts whenever the process dies
  lmx config show quickstart                       all settings, and what set them

Several processes train one run if each is started with the same command and the run's
folder is on a shared disk. SLURM, TPU pods and Kubernetes are detected (outside TPU
nodes, Kubernetes needs `pip install "jax[k8s]"`); elsewhere, number the processes:

  SLURM   srun -N 4 --ntasks-per-node=1 lmx train X.gin Mesh.fsdp=8 --run /shared/x
  TPU     gcloud compute tpus tpu-vm ssh POD --worker=all --command="lmx train ..."
  GKE     a Job with completionMode: Indexed, parallelism and completions: 4, and
          command: [lmx, train, X.gin, --run, /shared/x]
  flags   lmx train X.gin --processes 2 --process 0 --coordinator node1:4321
          lmx train X.gin --processes 2 --process 1 --coordinator node1:4321

Training starts when all processes are present. Process 0 writes files and shows
progress; a signal to one process stops all; if one dies, the others exit with 75. With
--restarts in each, all of them restart and resume: a process that dies is restarted
after 1, 2, 4, ... 60 s, until it dies twice in the same way with nothing saved between.

SIGTERM, Ctrl-C and a cloud's maintenance notice finish the step, save, and exit with
143 or 130; a second signal exits at once. launch/slurm.sh is a SLURM job that requeues
itself until the run is finished, and `lmx launch` submits it. There srun returns the
highest exit status of all processes: 137 if one process was killed, not 75.
"""
OPTIONS = {
    "--run": {"dest": "folder", "type": Path, "help": "folder of the run"},
    "--plan": {
        "nargs": "?",
        "const": LOCAL,
        "metavar": "MACHINE",
        "help": "refuse an experiment that does not fit MACHINE, or this machine",
    },
    "--processes": {"type": int, "metavar": "N", "help": "number of processes"},
    "--process": {"type": int, "metavar": "I", "help": "index of this process, from 0"},
    "--coordinator": {"metavar": "HOST:PORT", "help": "where process 0 listens"},
    "--wait": {
        "type": float,
        "default": 300.0,
        "metavar": "SECONDS",
        "help": "how long to wait for the other processes at the start (300)",
    },
    "--restarts": {
        "type": int,
        "default": 0,
        "metavar": "N",
        "help": "restart up to N times when the process dies or a restart may help",
    },
    "--grace": {
        "type": float,
        "metavar": "SECONDS",
        "help": "exit this long after a signal, saved or not (default: once saved)",
    },
    "--allow-change": {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "resume although this differs from the run's first config: a path, a"
        " Class.parameter, or data (repeatable)",
    },
}


def _train(args: argparse.Namespace) -> int:
    if args.restarts:
        return _supervise(args)
    config = load_experiment(args)
    set_tpu_flags()
    folder = args.folder or _default_folder(args.names[0], config.run_id())
    return _train_distributed(args, config, folder)


def check_plan(config: Config, machine: str) -> bool:
    """Whether the arithmetic of `lmx plan` says that it fits; prints what would."""
    from lmx.plan import report, search

    forecast = predict(config, machine)
    if not forecast.fits:
        verdict = report.format_verdict(forecast, search.suggest(forecast))
        print(verdict, file=sys.stderr)
    return forecast.fits


def _train_distributed(args: argparse.Namespace, config: Config, folder: Path) -> int:
    """Trains as one of several processes, or alone."""
    from lmx.core import distributed

    info = distributed.detect_cluster(args.process, args.processes, args.coordinator)
    facts = {"config": config.digest()}
    with distributed.distributed_session(
        info, facts, args.wait, usage_errors=ConfigError
    ):
        if args.plan and not check_plan(config, args.plan):
            return 1
        _enable_compilation_cache()
        return _train_here(args, config, folder)


def _supervise(args: argparse.Namespace) -> int:
    """Runs the same command, with the run's folder named, in a child process."""
    from lmx.cli.supervise import Supervisor

    lmx = [sys.executable, "-m", "lmx.cli.main"]
    folder = args.folder
    if folder is None:
        imports = [word for module in args.imports for word in ("--import", module)]
        show = [*lmx, "config", "show", "--json", *args.words, *imports]
        shown = subprocess.run(show, stdout=subprocess.PIPE, text=True)
        if shown.returncode:
            return shown.returncode
        folder = _default_folder(args.names[0], json.loads(shown.stdout)["run_id"])
    last = ["--run", str(folder), "--restarts", "0"]  # the last of each flag counts
    return Supervisor([*lmx, *args.argv, *last], folder, args.restarts)()


def _default_folder(config: str, run_id: str) -> Path:
    return Path("runs") / f"{Path(config).stem}-{run_id}"


def _train_here(args: argparse.Namespace, config: Config, folder: Path) -> int:
    from lmx.core.distributed import is_leader
    from lmx.run.goodput import read_process_start
    from lmx.run.run_dir import read_last_metrics
    from lmx.run.summary import format_summary
    from lmx.train.guard.guard import FaultError
    from lmx.train.hooks.preemption import StoppedError
    from lmx.train.trainer import RunOptions, train_run

    allowed = tuple(args.allow_change)
    options = RunOptions(read_process_start(), args.grace, allowed)
    message = ""
    try:
        train_run(Path(args.names[0]).stem, config, folder, options)
        status = 0
    except StoppedError as stopped:
        message, status = (
            f"{stopped}; the same command resumes: {folder}",
            stopped.exit_status,
        )
    except FaultError as fault:
        message, status = f"error: {fault}", fault.exit_status
    if not is_leader():
        return status
    if status:
        print(message, file=sys.stderr)
    elif args.json:
        print(json.dumps({"run": str(folder), **read_last_metrics(folder)}))
    else:
        print(format_summary(folder))
    return status


def _enable_compilation_cache() -> None:
    """Caches compiled programs for the next start, unless the user set a cache.

    Not on CPUs: programs are compiled for one kind of CPU, and may be loaded on another
    (https://github.com/jax-ml/jax/issues/38445). Unreadable ones are compiled again.
    """
    import jax

    from lmx.core.files import get_cache_dir

    is_set = "JAX_COMPILATION_CACHE_DIR" in os.environ
    if jax.default_backend() != "cpu" and not is_set:
        folder = get_cache_dir("programs")
        jax.config.update("jax_compilation_cache_dir", str(folder))


COMMANDS = (
    Command(
        "train",
        "CONFIG.gin",
        "train an experiment, or resume it",
        _ABOUT,
        _train,
        OPTIONS,
        takes_overrides=True,
        errors=(ConfigError,),
    ),
)
