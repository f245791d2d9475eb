"""`lmx prove`: kills a run again and again, and shows that nothing of it is lost."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lmx.cli.config import add_import, load_config
from lmx.config.registry import ConfigError
from lmx.config.value import Config

_ABOUT = """\
Runs an experiment once undisturbed, and once with kills: each a real `lmx train` that
ends by SIGKILL at a moment drawn from the seed, and is started again. The moments are,
in turn: within a step; before anything of a state is written; once it is copied off the
devices; once a file of its arrays is there; before and after its commit; before an old
state gives way to it; and between the save after a step and the evaluation due then,
where there is one. Then once more, killed on this mesh to go on in two processes, and
killed there to go on in one with another mesh, where devices allow it (CPUs do: as many
are made as are needed).

Compared are the loss of every step, every logged value, every batch that was fed, all
that was due and done, and the digests of parameters and optimizer state. What must be
equal to the bit (same mesh) and what is within which tolerance (another mesh) stands in
OUT/certificate.json and is printed; the runs lie beside it. Exit status: 0 it is so, 1
it is not, 2 the words or inputs were wrong.

  lmx prove experiments/quickstart.gin --steps 100 Decoder.depth=2
  lmx prove experiments/quickstart.gin --steps 100 --kills 16 --seed 1 --out proof

It takes the time of three runs and of as many starts as there are kills. The state is
saved at least twice a kill: CheckpointPolicy.every is made smaller where that needs it.
"""


def add(parsers: Any) -> None:
    """Adds the verb `run_faulttest` to what `ArgumentParser.add_subparsers` returned."""
    parser = parsers.add_parser(
        "prove",
        help="kill a run again and again, and compare",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="lmx prove EXPERIMENT.gin [Name.parameter=value ...] [options]",
    )
    parser.set_defaults(run=run)
    parser.add_argument("words", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
    parser.add_argument(
        "--kills", type=int, default=8, metavar="N", help="on the same mesh (8)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the moments (0)"
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="of the experiment (as the page says)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="a new folder (runs/proof-NAME-ID)"
    )
    parser.add_argument("--json", action="store_true", help="print the certificate")
    add_import(parser)


def run(args: argparse.Namespace) -> int:
    """Proves. Returns the exit status."""
    from lmx.faulttest.process_group import UnexpectedExitError

    try:
        return _prove(args)
    except UnexpectedExitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if error.status == 2 else 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _prove(args: argparse.Namespace) -> int:
    from lmx.faulttest.kill_point import sample_kills
    from lmx.faulttest.process_group import Scenario
    from lmx.faulttest.report import format_report
    from lmx.faulttest.runner import run_faulttest
    from lmx.faulttest.scenario import KillSchedule, create_folder

    page, *words = args.words
    if args.kills < 1:
        raise ConfigError(f"--kills {args.kills}: at least 1.")
    words += [f"Experiment.steps={args.steps}"] if args.steps is not None else []
    config = _loaded(page, words, args.imports)
    plan = KillSchedule.from_config(config)
    every = max(1, plan.steps // (2 * args.kills))
    if every < plan.save_every:
        words.append(f"CheckpointPolicy.every={every}")
        config = _loaded(page, words, args.imports)
        plan = KillSchedule.from_config(config)
    moments = sample_kills(
        args.seed, args.kills, plan.steps, plan.save_steps, plan.keep, plan.hook_steps
    )
    name = f"proof-{Path(page).stem}-{config.run_id()}"
    trial = Scenario(
        module="lmx.cli.main",
        config=str(Path(page).resolve()),
        overrides=words,
        imports=args.imports,
        folder=create_folder(args.out or Path("runs") / name),
    )
    told = run_faulttest(trial, config, moments, seed=args.seed)
    print(json.dumps(told) if args.json else format_report(told))
    return 0 if told["holds"] else 1


def _loaded(page: str, words: list[str], imports: list[str]) -> Config:
    """The experiment; refuses what is none."""
    config = load_config(page, words, imports)
    if config.name != "Experiment":
        raise ConfigError(f"{page} is @{config.name}: only an experiment is proved.")
    return config
