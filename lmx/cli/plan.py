"""`lmx plan`: what an experiment will need on a machine, before it runs."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lmx.cli.config import add_import, load_config
from lmx.config.registry import ConfigError
from lmx.config.value import explain_errors
from lmx.plan.price import DEFAULT_PRICES

_ABOUT = """\
Says whether an experiment fits a machine, how fast it should be, what bounds it and
what it costs. Needs neither the machine nor the data. For TPUs the training step is
compiled by their own compiler (`pip install 'lmx[tpu]'`), which takes minutes; for
GPUs, and with --analytic, everything is arithmetic, and said to be.

  lmx plan experiments/families/llama2_70b.gin --on v5p-128
  lmx plan experiments/families/llama3_8b.gin Mesh.fsdp=256 --on v5e-256 --analytic
  lmx plan experiments/families/llama2_70b.gin --on 4xv5e-256 --search 2
  lmx plan experiments/gpt2_124m.gin --on h100-8 --json
  lmx plan experiments/quickstart.gin --on cpu --png plan.png

Machines are v5e-N, v6e-N (N chips), v5p-N (N / 2 chips), 4xv5e-256 (slices), h100-8x4
and h200-8 (servers of 8), and cpu. Exit status: 0 it fits, 1 it does not, and then it
is said what would make it fit; 2 the words or inputs were wrong.
"""


def add(parsers: Any) -> None:
    """Adds the verb `plan` to what `ArgumentParser.add_subparsers` returned."""
    parser = parsers.add_parser(
        "plan",
        help="what an experiment will need on a machine",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="lmx plan EXPERIMENT.gin [Name.parameter=value ...] --on MACHINE",
    )
    parser.set_defaults(run=run)
    parser.add_argument("words", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
    parser.add_argument("--on", required=True, metavar="MACHINE", help="as in v5p-128")
    parser.add_argument(
        "--analytic", action="store_true", help="compile nothing, and say it at once"
    )
    parser.add_argument(
        "--search",
        type=int,
        metavar="N",
        help="try other meshes, remat policies and microbatches; compile the best N",
    )
    parser.add_argument(
        "--prices",
        type=Path,
        default=DEFAULT_PRICES,
        metavar="FILE",
        help="lines of a chip and US dollars for an hour of one (lmx/plan/prices.txt)",
    )
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw it, too")
    parser.add_argument("--json", action="store_true", help="print it for a machine")
    add_import(parser)


def run(args: argparse.Namespace) -> int:
    """Plans. Returns the exit status."""
    try:
        return _plan(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _plan(args: argparse.Namespace) -> int:
    from lmx.plan import case, plot, price, report, search, topology
    from lmx.plan.compiled.compile import compile_forecast
    from lmx.plan.forecast import make_forecast

    file, *overrides = args.words
    config = load_config(file, overrides, args.imports)
    if config.name != "Experiment":
        raise ConfigError(f"{file} is @{config.name}: only an experiment has a plan.")
    with explain_errors(config):
        opened = case.build_case(config.build(), topology.parse_machine(args.on))
        said = make_forecast(opened, price.load_price(opened.machine.kind, args.prices))
    best = search.rank_settings(said)[: args.search] if args.search else [said]
    if not args.analytic:
        best = [compile_forecast(config, each, args.imports) for each in best]
        best.sort(key=lambda each: (not each.fits, each.seconds.step))
    asked, said = said, best[0] if best else said
    better = {} if said.fits else search.suggest(said)
    if args.json:
        would = {
            name: search.format_overrides(said, each) for name, each in better.items()
        }
        rank = [
            {"settings": search.format_overrides(asked, e), **e.to_json()} for e in best
        ]
        print(json.dumps({**said.to_json(), "would_fit": would, "ranking": rank}))
    else:
        if args.search:
            print(report.format_ranking(asked, best), end="\n\n")
        print(report.format_report(said, better))
    if args.png:
        plot.plot_forecast(said, args.png)
    return 0 if said.fits else 1
