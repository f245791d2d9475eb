"""The command line. Each command imports what it needs when it runs."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from lmx.cli import config, data, hf, plan, sweep, train
from lmx.cli.command import RAW, Command, Parser
from lmx.cli.runs import (
    ckpt,
    eval,
    faulttest,
    generate,
    inspect,
    overview,
    replay,
    report,
)
from lmx.cli.study import compare, coord_check, fit
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
  lmx sweep run sweep.gin                          one experiment at many points
  lmx fit points.csv                               a scaling law, with intervals
  lmx report sweeps/rate                           a page of tables, curves and fits
  lmx compare A.gin B.gin                          which is better, over several seeds
  lmx inspect runs/quickstart-... --step 100       the batch and losses of one step
  lmx faulttest quickstart --steps 60              kills it, and shows nothing is lost
  lmx import hf Llama-3.2-1B runs/llama            a Hugging Face model as a run

`quickstart` ships with lmx; `lmx config list experiments` lists the others, and a path
such as experiments/mine.gin names a config of yours. Exit status: 0 success, 1 a check
failed, 2 invalid arguments or inputs, 75 a restart may help, 130 Ctrl-C, 143 SIGTERM.
"""
_GROUPS = {
    "config": "read a config without running it: show, explain, diff, tree, list",
    "data": "prepare text for training, in a new folder; inputs are never changed",
    "sweep": "train an experiment at many points: plan, run, status",
    "ckpt": "read the checkpoints of a run: list, verify, diff, lineage",
    "import": "a model of another library as a run",
    "export": "a run as a model of another library",
}
_MODULES = (
    train, generate, eval, overview, config, data, plan, sweep, compare, fit,
    coord_check, hf, ckpt, inspect, replay, report, faulttest,
)  # fmt: skip
_OBJECTS = [thing for module in _MODULES for thing in vars(module).values()]
COMMANDS = tuple(thing for thing in _OBJECTS if isinstance(thing, Command))


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser("lmx", description=_ABOUT, formatter_class=RAW)
    keywords: Any = dict(required=True, metavar="COMMAND", parser_class=Parser)
    groups = {"": parser.add_subparsers(**keywords)}
    for command in COMMANDS:
        group = command.name.rpartition(" ")[0]
        if group not in groups:
            texts = [c.description for c in COMMANDS if c.name.startswith(f"{group} ")]
            examples = [
                re.findall("^  lmx .*", text, re.MULTILINE)[0] for text in texts
            ]
            more = f"\n`lmx {group} COMMAND --help` has more examples."
            about = "\n".join((f"lmx {group}: {_GROUPS[group]}\n", *examples, more))
            parser_of_group = groups[""].add_parser(
                group, help=_GROUPS[group], description=about, formatter_class=RAW
            )
            groups[group] = parser_of_group.add_subparsers(**keywords)
        command.add_to(groups[group])
    return parser


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
