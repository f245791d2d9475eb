"""`lmx train`: trains an experiment, or resumes it; `lmx launch`: does so elsewhere."""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from lmx.cli.command import Command, Output, option
from lmx.cli.load import load_experiment
from lmx.cli.plan import LOCAL, predict
from lmx.config.registry import ConfigError, require
from lmx.config.value import Config

_OPTIONS = {
    "--run": option("folder of the run", Path) | {"dest": "folder"},
    "--plan": {
        "nargs": "?",
        "const": LOCAL,
        "metavar": "MACHINE",
        "help": "refuse an experiment that does not fit MACHINE, or this machine",
    },
    "--processes": option("number of processes", int, metavar="N"),
    "--process": option("index of this process, from 0", int, metavar="I"),
    "--coordinator": option("where process 0 listens", metavar="HOST:PORT"),
    "--wait": option("seconds to wait for other processes (300)", float, 300.0, "S"),
    "--restarts": option("restart up to N times where that may help", int, 0, "N"),
    "--grace": option("exit S seconds after a signal (once saved)", float, None, "S"),
    "--allow-change": {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "resume although it differs: a path, data, or code (repeatable)",
    },
}


@Command(
    "train",
    "CONFIG.gin",
    "train an experiment, or resume it",
    _OPTIONS,
    takes_overrides=True,
    errors=(ConfigError,),
)
def train(args: argparse.Namespace) -> Output | int:
    """Trains an experiment in a folder of its own, or resumes it.

    The folder is runs/NAME-ID, where ID is a digest of all settings that affect the
    result. The same command resumes a stopped run, with the same result to the bit; a
    resumed run may use another mesh. Ctrl-C saves a checkpoint first.

      lmx train quickstart                             an experiment that ships with lmx
      lmx train quickstart Experiment.seed=1 Decoder.depth=6
      lmx train experiments/shakespeare_char.gin Text.path=input.txt --run runs/bard
      lmx train gpt2_124m Text.path=fineweb --plan     refuses what exceeds the memory
      lmx train quickstart --restarts 20               restarts when the process dies
      lmx train runs/quickstart-...                    resumes that run
      lmx train runs/x Experiment.steps=900 --allow-change Experiment.steps   extends it
      lmx config show quickstart                       all settings, and what set them

    Several processes train one run if each is started with the same command and the
    run's folder is on a shared disk. SLURM, TPU pods and Kubernetes are detected
    (outside TPU nodes, Kubernetes needs `pip install "jax[k8s]"`); elsewhere, number
    the processes:

      SLURM   srun -N 4 --ntasks-per-node=1 lmx train X.gin Mesh.fsdp=8 --run /shared/x
      TPU     gcloud compute tpus tpu-vm ssh POD --worker=all --command="lmx train ..."
      GKE     a Job with completionMode: Indexed, parallelism and completions: 4, and
              command: [lmx, train, X.gin, --run, /shared/x]
      flags   lmx train X.gin --processes 2 --process 0 --coordinator node1:4321
              lmx train X.gin --processes 2 --process 1 --coordinator node1:4321

    Training starts when all processes are present. Process 0 writes files and shows
    progress; a signal to one process stops all; if one dies, the others exit with 75.
    With --restarts in each, all of them restart and resume: a process that dies is
    restarted after 1, 2, 4, ... 60 s, until it dies twice in the same way with nothing
    saved between.

    SIGTERM, Ctrl-C and a cloud's maintenance notice finish the step, save, and exit
    with 143 or 130; a second signal exits at once. launch/slurm.sh is a SLURM job that
    requeues itself until the run is finished, and `lmx launch` submits it. There srun
    returns the highest exit status of all processes: 137 if one was killed, not 75.
    """
    return _supervise(args) if args.restarts else _train(args)


def _train(args: argparse.Namespace) -> Output | int:
    """Trains as one of several processes, or alone."""
    from lmx.core import distributed

    config = load_experiment(args)
    folder = _choose_folder(args, config.run_id())
    info = distributed.detect_cluster(args.process, args.processes, args.coordinator)
    must_match = {"config": config.digest()}
    with distributed.distributed_session(
        info, must_match, args.wait, usage_errors=ConfigError
    ):
        if args.plan and not _check_plan(config, args.plan):
            return 1
        _enable_compilation_cache()
        return _run(args, config, folder)


def _run(args: argparse.Namespace, config: Config, folder: Path) -> Output | int:
    """Trains or resumes the run; process 0 has the output."""
    from lmx.core.console import warn_on_error
    from lmx.core.distributed import is_leader
    from lmx.run.goodput import read_process_start
    from lmx.run.run_dir import read_last_metrics
    from lmx.run.summary import format_summary
    from lmx.train.guard.nonfinite import FaultError
    from lmx.train.hooks.preemption import StoppedError
    from lmx.train.trainer import RunOptions, train_run

    allowed, name = tuple(args.allow_change), args.names[0]
    options = RunOptions(read_process_start(), args.grace, allowed)
    if is_leader():
        with warn_on_error("compare the run with others"):
            _report_new_run(config, name, folder)
    stop = None
    try:
        train_run(Path(name).stem, config, folder, options)
    except (StoppedError, FaultError) as error:
        stop = error.with_traceback(None)  # whose frames hold the state
    if isinstance(stop, FaultError):
        from lmx.analysis.nonfinite import explain_fault

        explain_fault(stop, folder)
    if stop:
        message = "\n".join([f"error: {stop}", *getattr(stop, "__notes__", [])])
        if isinstance(stop, StoppedError):
            message = f"{stop}; the same command resumes: {folder}"
        if is_leader():
            print(message, file=sys.stderr)
        return stop.exit_status
    if not is_leader():
        return 0
    data = {"run": str(folder), **read_last_metrics(folder)}
    summary = f"{folder}: trained"
    with warn_on_error("summarize the run"):
        summary = format_summary(folder)
    return Output(summary, data)


def _check_plan(config: Config, machine: str) -> bool:
    """Whether the analytic forecast fits; if not, prints the settings that would."""
    from lmx.plan import report, search

    forecast = predict(config, machine)
    if not forecast.fits:
        fixes = search.suggest(config, forecast)
        print(report.format_verdict(forecast, fixes), file=sys.stderr)
    return forecast.fits


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
        folder = _choose_folder(args, json.loads(shown.stdout)["run_id"])
    last = ["--run", str(folder), "--restarts", "0"]  # the last of each flag counts
    return Supervisor([*lmx, *args.argv, *last], folder, args.restarts)()


def _choose_folder(args: argparse.Namespace, run_id: str) -> Path:
    """The run that is named, the folder of --run, or that of a config by default."""
    name = Path(args.names[0])
    if not (name / "experiment.json").is_file():
        return args.folder or Path("runs") / f"{name.stem}-{run_id}"
    require(
        args.folder in (None, name),
        f"{name} is a run, which lmx train resumes in its own folder: for a new run in"
        f" {args.folder}, name its config, {name / 'experiment.gin'}.",
    )
    return name


def _report_new_run(config: Config, name: str, folder: Path) -> None:
    """Prints that a run is new, and how it differs from the newest of that config."""
    from lmx.config.value import diff
    from lmx.run.run_dir import CONFIG, read_config

    if (folder / CONFIG).is_file():
        return
    print(f"{folder}: a new run", file=sys.stderr)
    others = [*Path("runs").glob(f"{Path(name).stem}-*/{CONFIG}")]
    if others:
        run = max(others, key=lambda file: file.stat().st_mtime).parent
        changes = diff(read_config(run).identity(), config.identity())
        print(f"{run} differs in {', '.join(changes) or 'nothing'}", file=sys.stderr)


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


@Command(
    "launch",
    "COMMAND CONFIG.gin",
    "train an experiment on other machines",
    _OPTIONS,
    takes_overrides=True,
)
def launch(args: argparse.Namespace) -> int:
    """Runs a command that trains elsewhere, with the arguments of `lmx train` after it.

    The config is resolved first, and with --plan checked against the machine, so that
    no job waits in a queue to end with an error or too little memory:

      lmx launch 'sbatch -N 4 --gpus-per-node=8 launch/slurm.sh' experiments/x.gin \\
        Mesh.data=32 --run /shared/x --plan h100-8x4
      lmx launch 'echo sbatch -N 4 launch/slurm.sh' quickstart    prints the command

    launch/slurm.sh is a SLURM job: one process per node; it saves before its time limit
    and requeues itself until the run is finished. Copy it, and change what your cluster
    needs. The command is split as by a shell and is not run by one. Exit status: that
    of the command; 1 the plan does not fit; 2 invalid arguments.
    """
    program = shlex.split(args.names.pop(0))
    require(program, "the command has no program: write 'sbatch job.sh'.")
    config = load_experiment(args)
    require(
        args.plan != LOCAL,
        "--plan: the devices of this machine are not those that will train: name the"
        " machine, as in --plan h100-8x4.",
    )
    if args.plan and not _check_plan(config, args.plan):
        return 1
    command = [*program, *(word for word in args.argv[1:] if word != args.words[0])]
    print(f"+ {shlex.join(command)}", file=sys.stderr, flush=True)
    try:
        return subprocess.run(command).returncode
    except OSError as error:
        raise ConfigError(f"cannot run {program[0]}: {error}") from error
