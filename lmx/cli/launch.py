"""`lmx launch`: hands an experiment that was read and planned to other machines."""

import argparse
import shlex
import subprocess
import sys
from typing import Any

from lmx.cli import train
from lmx.config.registry import ConfigError

_ABOUT = """\
Runs a command that trains elsewhere, with the words of `lmx train` after it. The page
is read first, and with --plan held against the machine, so that no job waits in a queue
to end with an error, or with too little memory:

  lmx launch 'sbatch -N 4 --gpus-per-node=8 launch/slurm.sh' experiments/x.gin \\
    Mesh.data=32 --run /shared/x --plan h100-8x4

  lmx launch 'echo sbatch -N 4 launch/slurm.sh' ...     shows what would be run

launch/slurm.sh is a job of SLURM: one process a node; it saves before its time is over
and goes back in the queue until the run is done. Copy it, and change what your cluster
needs. The command has a shell's quotes but no shell. Exit status: the command's; 1 if
the plan does not fit; 2 if the words are wrong.
"""


def add(parsers: Any) -> None:
    """Adds the verb `launch` to what `ArgumentParser.add_subparsers` returned."""
    parser = parsers.add_parser(
        "launch",
        help="train an experiment on other machines",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="lmx launch 'COMMAND' EXPERIMENT.gin [Name.parameter=value ...]"
        " [options of lmx train]",
    )
    parser.set_defaults(run=run)
    parser.add_argument("command", metavar="COMMAND", help="what trains elsewhere")
    train.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command, if the experiment is sound. Returns the exit status."""
    try:
        config = train.load_trainable(args)
        if args.plan == train.LOCAL:
            raise ConfigError(
                "--plan: the devices at hand are not those that will train. Name these,"
                " as in --plan h100-8x4."
            )
        if args.plan and not train.check_plan(config, args.plan):
            return 1
        return _run_command(args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run_command(args: argparse.Namespace) -> int:
    """The status of the command with the words that it was not itself."""
    words = args.typed[1:]
    words.remove(args.command)
    program = _split(args.command)
    print(f"+ {shlex.join([*program, *words])}", file=sys.stderr, flush=True)
    try:
        return subprocess.run([*program, *words]).returncode
    except OSError as error:
        raise ConfigError(f"{program[0]} does not run here: {error}") from error


def _split(command: str) -> list[str]:
    try:
        program = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"{command!r}: {error}.") from error
    if not program:
        raise ConfigError(f"{command!r} names no program, as 'sbatch job.sh' does.")
    return program
