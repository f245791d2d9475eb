"""`lmx reproduce`: trains a run again from its metadata and compares the losses."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lmx.cli.command import Command, Output
from lmx.cli.load import enable_float64, import_modules, set_tpu_flags
from lmx.cli.runs.replay import format_change
from lmx.config.registry import ConfigError

if TYPE_CHECKING:
    from lmx.analysis.reproduce import Reproduction

_ABOUT = """\
Trains again the run that a metadata file describes, all of it or its first N steps, in
a new folder, and compares the losses with the recorded ones. They must be equal to the
bit if devices, mesh, package versions and compiler flags are the same; otherwise within
1%, or within --rtol. Lists what differs in the environment, such as the commit. Exit
status: 0 the losses agree, 1 they do not, 2 it cannot be tried, as with other data.

  lmx reproduce runs/quickstart-.../metadata.json
  lmx reproduce metadata.json --steps 100 --run /tmp/again
  lmx reproduce metadata.json Mesh.fsdp=1              execution settings may change
  lmx reproduce metadata.json --import mine            imports your classes

The metadata file and the data are all that is needed. The file is never executed; its
config names classes of lmx, or of the modules that --import gives.
"""
_OPTIONS = {
    "--steps": {"type": int, "metavar": "N", "help": "only the first N steps (all)"},
    "--run": {"dest": "folder", "type": Path, "help": "the new folder"},
    "--rtol": {
        "type": float,
        "metavar": "X",
        "help": "relative tolerance of a loss (0 where bits can agree, else 0.01)",
    },
}


def _reproduce(args: argparse.Namespace) -> Output | int:
    import_modules(args.imports)
    from lmx.analysis.reproduce import RunMetadata, apply_overrides, reproduce

    metadata = RunMetadata.load(Path(args.names[0]))
    config = apply_overrides(metadata, args.overrides)
    enable_float64(config)
    set_tpu_flags()
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
    return Output(
        format_result(folder, result), data, int(bool(result.differing_steps))
    )


def format_result(folder: Path, result: "Reproduction") -> str:
    """The environment changes, and the losses that differ."""
    lines = [f"{folder}: {result.steps:,} steps repeated"]
    if result.environment_diff:
        changes = result.environment_diff.items()
        lines.append("differences of the environment, recorded -> here")
        lines += [format_change(name, *pair) for name, pair in changes]
    rule = f"within {result.rtol:g}" if result.rtol else "equal to the bit"
    count, differing = len(result.losses), result.differing_steps
    verdict = f"{len(differing)} are not" if differing else "all are"
    lines.append(f"{count} losses up to step {max(result.losses)}, {rule}: {verdict}")
    for step in differing[:10]:
        old, new = result.losses[step]
        lines.append(f"  step {step:>8,}  {old!s:>22}  {new!s:>22}")
    return "\n".join(lines)


COMMANDS = (
    Command(
        "reproduce",
        "METADATA",
        "train a run again from its metadata, and compare",
        _ABOUT,
        _reproduce,
        _OPTIONS,
        takes_overrides=True,
        errors=(ConfigError,),
        hint="nothing was compared",
    ),
)
