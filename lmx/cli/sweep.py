"""`lmx sweep plan | run | status`: an experiment at many points."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmx.cli.command import Command, Output, option
from lmx.cli.load import load_root
from lmx.cli.plan import predict
from lmx.config.registry import ConfigError
from lmx.core.console import format_table

if TYPE_CHECKING:
    from lmx.study.sweep import Start, SweepRun

RESTARTS = {"--restarts": option("of each run, where that may help", int, 3, "N")}
_OUT = {"--out": option("the folder of its runs (sweeps/NAME)", Path, metavar="DIR")}


@Command(
    "sweep plan",
    "SWEEP.gin",
    "what a sweep would take, before anything runs",
    {"--on": option("such as v5e-8", default="cpu", metavar="MACHINE")},
    takes_overrides=True,
)
def plan(args: argparse.Namespace) -> Output:
    """Lists the runs of a sweep: parameters, tokens, FLOPs, hours and cost of each.

    A sweep is a config such as

      Sweep.experiment = 'quickstart'
      Sweep.points = @Grid()
      Grid.values = {'WSD.peak_lr': (0.01, 0.02), 'Decoder.depth': (2, 4)}

    Hours and cost are those of `lmx plan --on MACHINE --analytic`, by default on a CPU:
    of training steps alone, one run after another. FLOPs are of the whole run, in three
    conventions: 6 per active weight and token; with attention to the whole sequence, as
    in MFU; with attention to earlier tokens. D counts all tokens that a model has seen.
    The other columns count the steps before a branch begins once: as those of its
    trunk.

      lmx sweep plan sweep.gin
      lmx sweep plan sweep.gin --on v5e-1 "Grid.values={'Experiment.seed': (0, 1)}"
    """
    runs = _load(args)
    rows = [{"run": run.name, **_plan_run(run, args.on)} for run in runs]
    sizes = ("run", "N", "N without vocab", "D")
    summed = [name for name in rows[0] if name not in sizes]
    total = {name: sum(row[name] for row in rows) for name in summed}
    last = {**dict.fromkeys(rows[0], ""), "run": f"{len(rows)} runs", **total}
    table = [
        [f"{x:.4g}" if type(x) is float else x for x in row.values()]
        for row in (*rows, last)
    ]
    text = (
        f"Hours and dollars are of training steps on {args.on}, one run after another,"
        " without compilation, evaluation and saves.\n\n"
        f"{format_table(list(last), table)}\n\nnext: lmx sweep run {args.names[0]}"
    )
    data = {"runs": rows, "total": total, "machine": args.on}
    return Output(text, data)


def _plan_run(run: "SweepRun", machine: str) -> dict[str, Any]:
    from lmx.models.params import VOCAB

    forecast = predict(run.config, machine)
    case, flops = forecast.case, forecast.flops
    sizes = {x.name: math.prod(x.shape) for x in case.tensors("params")}
    inner = [n for x, n in sizes.items() if not x.startswith(VOCAB)]
    own = (case.steps - run.first_step) / case.steps
    tokens = (case.steps - run.first_step) * case.tokens
    return {
        "N": sum(sizes.values()),
        "N without vocab": sum(inner),
        "D": case.steps * case.tokens,
        "tokens": tokens,
        "FLOPs": tokens * flops.weights,
        "with attention": tokens * flops.attention,
        "causal": tokens * flops.causal,
        "hours": own * forecast.hours,
        "dollars": own * forecast.dollars,
    }


@Command(
    "sweep run",
    "SWEEP.gin",
    "train the runs of a sweep, also by several workers",
    {**_OUT, **RESTARTS},
    takes_overrides=True,
)
def run(args: argparse.Namespace) -> int:
    """Trains the runs that are not done and that no other worker trains.

    Start the same command as often as there are machines or devices for it, here or on
    machines that share the folder: each worker takes a run that is free. When a worker
    dies, another one resumes its run from the newest checkpoint. A finished run is not
    started again. Ctrl-C saves the current run and ends the worker.

      lmx sweep run sweep.gin
      lmx sweep run sweep.gin --out /shared/rates
    """
    from lmx.study.sweep import run_sweep

    runs = _load(args)
    folder = _choose_folder(args)
    if not (worst := run_sweep(runs, folder, make_start(args))):
        print(f"all {len(runs)} runs are done; next: lmx report {folder}")
    return worst


def make_start(args: argparse.Namespace) -> "Start":
    """Trains a run in a process of its own, with restarts as `args` says."""
    from lmx.cli.supervise import Supervisor

    imports = [word for module in args.imports for word in ("--import", module)]

    def start(run: "SweepRun", path: Path, pass_fds: Sequence[int]) -> int:
        words = ["train", *run.arguments, "--run", f"{path}", *imports]
        command = [sys.executable, "-m", "lmx.cli.main", *words]
        supervisor = Supervisor(command, path, args.restarts, pass_fds)
        status, received = supervisor(), supervisor.received_signal
        return 128 + received if received else status

    return start


@Command(
    "sweep status",
    "SWEEP.gin",
    "a table of the runs of a sweep",
    _OUT,
    takes_overrides=True,
)
def status(args: argparse.Namespace) -> Output:
    """Lists the runs of a sweep: their states, steps, settings and last losses.

    It is the table of `lmx runs`, with the runs that were not started.

      lmx sweep status sweep.gin
    """
    from lmx.cli.runs.overview import format_rows
    from lmx.study.sweep import list_status

    runs = _load(args)
    rows = list_status(runs, _choose_folder(args))
    return Output(format_rows(rows), rows)


def _load(args: argparse.Namespace) -> list["SweepRun"]:
    try:
        return load_root(args, "Sweep").build().list_runs()
    except ConfigError as error:
        hint = ": settings of all runs are in Sweep.settings={'Name.parameter': value}"
        raise ConfigError(f"{error}{hint * ('@Sweep() uses' in f'{error}')}") from error


def _choose_folder(args: argparse.Namespace) -> Path:
    return args.out or Path("sweeps") / Path(args.names[0]).stem
