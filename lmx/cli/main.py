"""The command line. Each command imports what it needs when it runs."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from lmx.cli import config, data, hf, plan, train
from lmx.cli.command import RAW, Command, Parser
from lmx.cli.runs import ckpt, eval, faulttest, generate, inspect, overview, replay
from lmx.core.console import print_line, protect_output

_ABOUT = """\
Language models in JAX. An experiment is a .gin config; a run is a folder.

  lmx train quickstart                             train, evaluate, sample, plot
  lmx train quickstart Experiment.steps=50         the same with one setting changed
  lmx generate runs/quickstart-... --prompt "def "  text from a trained run
  lmx eval runs/quickstart-... essay.txt           how well it predicts a text
  lmx runs                                         a table of the runs in runs/
  lmx config show quickstart                       every setting, and what set it
  lmx plan gpt2_124m --on v5e-16                   whether it fits, speed and cost
  lmx inspect runs/quickstart-... --step 100       the batch and losses of one step
  lmx faulttest quickstart --steps 60              kills it, and shows nothing is lost
  lmx import hf Llama-3.2-1B runs/llama            a Hugging Face model as a run

`quickstart` ships with lmx; `lmx config list experiments` lists the others, and a path
such as experiments/mine.gin names a config of yours. Exit status: 0 success, 1 a check
failed, 2 invalid arguments or inputs, 75 a restart may help, 130 Ctrl-C, 143 SIGTERM.
"""
_GROUPS = {
    "config": ("read a config without running it", config.ABOUT),
    "data": ("prepare text for training", data.ABOUT),
    "ckpt": (
        "the checkpoints of a run: list, verify, diff, lineage",
        "Reads the checkpoints of a run, and changes none.\n",
    ),
    "import": ("a model of another library as a run", "Imports a model as a run.\n"),
    "export": ("a run as a model of another library", "Exports a run.\n"),
}
_MODULES = (
    *(
        train,
        generate,
        eval,
        overview,
        config,
        data,
        plan,
        hf,
        ckpt,
        inspect,
        replay,
        faulttest,
    ),
)
COMMANDS = tuple(
    command
    for module in _MODULES
    for command in vars(module).values()
    if isinstance(command, Command)
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser("lmx", description=_ABOUT, formatter_class=RAW)
    subparsers = {"": _add_subparsers(parser)}
    for command in COMMANDS:
        group = command.name.rpartition(" ")[0]
        if group not in subparsers:
            summary, about = _GROUPS[group]
            commands = [c for c in COMMANDS if c.name.startswith(f"{group} ")]
            examples = "\n".join(_first_example(c.description) for c in commands)
            group_parser = subparsers[""].add_parser(
                group,
                help=summary,
                description=f"{about}\n{examples}",
                formatter_class=RAW,
            )
            subparsers[group] = _add_subparsers(group_parser)
        command.add_to(subparsers[group])
    return parser


def _add_subparsers(parser: argparse.ArgumentParser) -> Any:
    return parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)


def _first_example(description: str) -> str:
    lines = description.split("\n")
    return next((line for line in lines if line.startswith("  lmx ")), "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its status."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    with protect_output() as output:
        args = build_parser().parse_args(argv, argparse.Namespace(argv=argv))
        status = args.command.execute(args)
        output.flush()
        if output.error:
            print_line(f"error: the result cannot be written: {output.error}")
            status = status or int(args.command is not train.train)  # that has saved
    sys.exit(status)


if __name__ == "__main__":
    main()
