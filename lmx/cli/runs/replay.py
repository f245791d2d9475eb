"""`lmx replay` repeats steps of a run; `lmx reproduce` trains it again."""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from lmx.cli.command import Command, Output, option
from lmx.config.registry import ConfigError
from lmx.core.console import format_table

if TYPE_CHECKING:
    from lmx.analysis.replay import RecordedRun, Replay
    from lmx.analysis.reproduce import Reproduction

STEP = {"--step": option("counted from 1", int, metavar="N") | {"required": True}}


def open_recorded_run(args: argparse.Namespace) -> "RecordedRun":
    """The run that a command names, under its overrides."""
    folder = Path(args.names[0])
    from lmx.analysis.replay import RecordedRun, load_run_config
    from lmx.core.hardware import set_up_jax

    set_up_jax(load_run_config(folder, args.overrides))
    return RecordedRun.open(folder, args.overrides)


@Command(
    "replay",
    "RUN",
    "repeat steps of a run and compare to the bit",
    STEP,
    takes_overrides=True,
    errors=(ConfigError,),
)
def replay_steps(args: argparse.Namespace) -> Output:
    """Repeats steps of a run, and shows the logged values next to the new ones.

    Restores the latest checkpoint before step N (as numbered in metrics.jsonl), or
    starts from the beginning, and trains to the end of step N. On the same machine and
    mesh the values are equal to the bit, or the exit status is 1. With overrides it
    shows what they change. Writes nothing.

      lmx replay runs/quickstart-... --step 1200
      lmx replay runs/quickstart-... --step 1200 WSD.peak_lr=0.001    another rate
      lmx replay runs/quickstart-... --step 1200 Mesh.fsdp=1    on fewer devices
      lmx replay runs/quickstart-... --step 1200 --json

    Run it in the folder where the run was started if its config has relative paths.
    """
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
    steps = len(result.logged)
    lines = [
        f"{run.folder}: from the checkpoint of step {result.start_step} to step"
        f" {result.step}",
        *_format_changes(run.changes),
        _format_values(result),
        f"{result.num_compared} values of {steps} logged step{'s' * (steps != 1)}"
        f" compared: {_format_verdict(result)}",
        *(_format_changes(run.environment_diff) if failed else ()),
    ]
    return Output("\n".join(lines), data, int(failed))


def _format_values(result: "Replay") -> str:
    """The logged and the new values of step N; layer values only where they differ."""
    new, old = result.replayed[result.step], result.logged.get(result.step, {})
    names = [n for n in new if "/" not in n or old.get(n, new[n]) != new[n]]
    rows = [(name, old.get(name, ""), new[name]) for name in names]
    return format_table((f"step {result.step:,}", "logged", "replayed"), rows)


def _format_verdict(result: "Replay") -> str:
    if not result.num_compared:
        return "none of these steps was logged"
    if not result.differences:
        return "all equal to the bit"
    step, metric, *_ = result.differences[0]
    return f"{len(result.differences)} differ, the first at step {step} ({metric})"


def _format_changes(changes: Mapping[str, tuple[Any, Any]]) -> Iterable[str]:
    """A line with the old and the new value of each setting."""
    for name, pair in changes.items():
        old, new = (shorten(f"{value}", 60, placeholder=" ...") for value in pair)
        yield f"  {name}: {old} -> {new}"


@Command(
    "reproduce",
    "METADATA",
    "train a run again from its metadata, and compare",
    {
        "--steps": option("only the first N steps (all)", int, metavar="N"),
        "--run": option("the new folder", Path) | {"dest": "folder"},
        "--rtol": option("tolerance (0 where bits can agree, else 0.01)", float),
    },
    takes_overrides=True,
    errors=(ConfigError,),
    hint="nothing was compared",
)
def reproduce_run(args: argparse.Namespace) -> Output:
    """Trains again the run that a metadata file describes, and compares the losses.

    Trains all of it, or its first N steps, in a new folder. The losses must be equal to
    the bit if devices, mesh, package versions and compiler flags are the same;
    otherwise within 1%, or within --rtol. Lists what differs in the environment, such
    as the commit. Exit status: 0 the losses agree, 1 they do not, 2 it cannot be tried,
    as with other data.

      lmx reproduce runs/quickstart-.../metadata.json
      lmx reproduce metadata.json --steps 100 --run /tmp/again
      lmx reproduce metadata.json Mesh.fsdp=1              execution settings may change
      lmx reproduce metadata.json --import mine            imports your classes

    The metadata file and the data are all that is needed. The file is never executed;
    its config names classes of lmx, or of modules that you name with --import, now or
    once before. Their code must be that of the run.
    """
    from lmx.analysis.reproduce import RunMetadata, override_execution, reproduce
    from lmx.core.hardware import set_up_jax

    metadata = RunMetadata.load(Path(args.names[0]))
    config = override_execution(metadata.config, args.overrides)
    set_up_jax(config)
    name = f"{metadata.fields['name']}-{config.run_id()}-again"
    folder = args.folder or Path("runs") / name
    result = reproduce(metadata, config, folder, args.steps, args.rtol)
    changes = result.environment_diff.items()
    data = {
        "run": str(folder),
        "steps": result.steps,
        "rtol": result.rtol,
        "equal": not result.differing_steps,
        "losses": result.losses,
        "differing_steps": result.differing_steps,
        "environment_diff": {name: {"old": a, "new": b} for name, (a, b) in changes},
    }
    text = _format_reproduction(folder, result)
    return Output(text, data, int(bool(result.differing_steps)))


def _format_reproduction(folder: Path, result: "Reproduction") -> str:
    """The environment changes, and the losses that differ."""
    lines = [f"{folder}: {result.steps:,} steps repeated"]
    if result.environment_diff:
        lines.append("differences of the environment, recorded -> now")
        lines += _format_changes(result.environment_diff)
    rule = f"within {result.rtol:g}" if result.rtol else "equal to the bit"
    count, differing = len(result.losses), result.differing_steps
    verdict = f"{len(differing)} are not" if differing else "all are"
    lines.append(f"{count} losses up to step {max(result.losses)}, {rule}: {verdict}")
    for step in differing[:10]:
        old, new = result.losses[step]
        lines.append(f"  step {step:>8,}  {old!s:>22}  {new!s:>22}")
    return "\n".join(lines)
