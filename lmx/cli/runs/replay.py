"""`lmx replay`: repeats steps of a run, to the same bits or with changed settings."""

import argparse
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from lmx.cli.command import Command, Output, format_table
from lmx.cli.load import enable_float64, import_modules, set_tpu_flags
from lmx.config.registry import ConfigError

if TYPE_CHECKING:
    from lmx.analysis.history import RecordedRun
    from lmx.analysis.replay import Replay

_ABOUT = """\
Restores the latest checkpoint of a run before step N (as numbered in metrics.jsonl), or
starts from the beginning, trains to the end of step N, and shows the logged values next
to the new ones. On the same machine and mesh they are equal to the bit, or the exit
status is 1. With overrides it shows what they change. Writes nothing.

  lmx replay runs/quickstart-... --step 1200
  lmx replay runs/quickstart-... --step 1200 WSD.peak_lr=0.001    another learning rate
  lmx replay runs/quickstart-... --step 1200 Mesh.fsdp=1    on fewer devices
  lmx replay runs/quickstart-... --step 1200 --json

Run it in the folder where the run was started if its config has relative paths.
"""
STEP_OPTIONS: dict[str, dict[str, Any]] = {
    "--step": {"type": int, "required": True, "metavar": "N", "help": "counted from 1"}
}


def _replay(args: argparse.Namespace) -> Output:
    run = open_recorded_run(args)
    from lmx.analysis.replay import replay

    result = replay(run, args.step)
    data = {
        "run": str(run.folder),
        "checkpoint": result.start_step,
        "step": result.step,
        "overridden": [*run.changes],
        "compared": result.num_compared,
        "equal": not result.differences,
        "logged": result.logged,
        "replayed": result.replayed,
    }
    failed = bool(result.differences) and not run.changes
    return Output(_format(run, result, failed), data, int(failed))


def open_recorded_run(args: argparse.Namespace) -> "RecordedRun":
    """The run that a command names, under its overrides."""
    folder = Path(args.names[0])
    import_modules(args.imports)
    from lmx.analysis.history import RecordedRun, load_run_config

    enable_float64(load_run_config(folder, args.overrides))
    set_tpu_flags()
    return RecordedRun.open(folder, args.overrides)


def _format(run: "RecordedRun", result: "Replay", failed: bool) -> str:
    steps = len(result.logged)
    lines = [
        f"{run.folder}: from the checkpoint of step {result.start_step} to step"
        f" {result.step}",
        *(format_change(path, *pair) for path, pair in run.changes.items()),
        _format_values(result),
        f"{result.num_compared} values of {steps} logged step{'s' * (steps != 1)}"
        f" compared: {_format_verdict(result)}",
    ]
    if failed:
        changes = run.environment_diff.items()
        lines += [format_change(name, *pair) for name, pair in changes]
    return "\n".join(lines)


def format_change(name: str, old: Any, new: Any) -> str:
    """A line with the old and the new value of a setting."""
    was, now = (shorten(f"{value}", 60, placeholder=" ...") for value in (old, new))
    return f"  {name}: {was} -> {now}"


def _format_verdict(result: "Replay") -> str:
    if not result.num_compared:
        return "none of these steps was logged"
    if not result.differences:
        return "all equal to the bit"
    step, metric, *_ = result.differences[0]
    return f"{len(result.differences)} differ, the first at step {step} ({metric})"


def _format_values(result: "Replay") -> str:
    """The logged and the new values of step N; layer values only where they differ."""
    new, old = result.replayed[result.step], result.logged.get(result.step, {})
    names = [n for n in new if "/" not in n or old.get(n, new[n]) != new[n]]
    rows = [(name, old.get(name, ""), new[name]) for name in names]
    return format_table((f"step {result.step:,}", "logged", "replayed"), rows)


COMMANDS = (
    Command(
        "replay",
        "RUN",
        "repeat steps of a run and compare to the bit",
        _ABOUT,
        _replay,
        STEP_OPTIONS,
        takes_overrides=True,
        errors=(ConfigError,),
    ),
)
