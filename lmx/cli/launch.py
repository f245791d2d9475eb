"""`lmx launch`: checks an experiment, then runs a command that trains it elsewhere."""

import argparse
import shlex
import subprocess
import sys

from lmx.cli import train
from lmx.cli.command import Command
from lmx.cli.load import load_experiment
from lmx.cli.plan import LOCAL
from lmx.config.registry import ConfigError

_ABOUT = """\
Runs a command that trains on other machines, with the arguments of `lmx train` after
it. The config is resolved first, and with --plan checked against the machine, so that
no job waits in a queue to end with an error or too little memory:

  lmx launch 'sbatch -N 4 --gpus-per-node=8 launch/slurm.sh' experiments/x.gin \\
    Mesh.data=32 --run /shared/x --plan h100-8x4
  lmx launch 'echo sbatch -N 4 launch/slurm.sh' quickstart    prints the command

launch/slurm.sh is a SLURM job: one process per node; it saves before its time limit and
requeues itself until the run is finished. Copy it, and change what your cluster needs.
The command is split as by a shell and is not run by one. Exit status: that of the
command; 1 the plan does not fit; 2 invalid arguments.
"""


def _launch(args: argparse.Namespace) -> int:
    program = _split(args.names.pop(0))
    config = load_experiment(args)
    if args.plan == LOCAL:
        raise ConfigError(
            "--plan: the devices of this machine are not those that will train: name"
            " the machine, as in --plan h100-8x4."
        )
    if args.plan and not train.check_plan(config, args.plan):
        return 1
    arguments = [word for word in args.argv[1:] if word != args.words[0]]
    print(f"+ {shlex.join([*program, *arguments])}", file=sys.stderr, flush=True)
    try:
        return subprocess.run([*program, *arguments]).returncode
    except OSError as error:
        raise ConfigError(f"cannot run {program[0]}: {error}") from error


def _split(command: str) -> list[str]:
    try:
        program = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"{command!r}: {error}.") from error
    if not program:
        raise ConfigError(f"{command!r} has no program: write 'sbatch job.sh'.")
    return program


COMMANDS = (
    Command(
        "launch",
        "COMMAND CONFIG.gin",
        "train an experiment on other machines",
        _ABOUT,
        _launch,
        train.OPTIONS,
        takes_overrides=True,
        errors=(ConfigError,),
    ),
)
