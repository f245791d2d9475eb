"""`lmx plan`: memory, speed and cost of an experiment on a machine, before it runs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lmx.cli.command import Command, Output
from lmx.cli.load import load_experiment
from lmx.config.value import explain_errors
from lmx.plan.price import DEFAULT_PRICES

if TYPE_CHECKING:
    from lmx.config.value import Config
    from lmx.plan.forecast import Forecast

LOCAL = "local"  # the devices of this machine
_ABOUT = """\
Predicts whether an experiment fits a machine, how fast it trains, what limits it and
what it costs. Needs neither the machine nor the data. For TPUs the training step is
compiled by their own compiler (`pip install 'lmx[tpu]'`), which takes minutes; for
GPUs, and with --analytic, the prediction is arithmetic only, and says so.

  lmx plan experiments/families/llama2_70b.gin --on v5p-128
  lmx plan families/llama3_8b Mesh.fsdp=256 --on v5e-256 --analytic
  lmx plan families/llama2_70b --on 4xv5e-256 --search 2
  lmx plan gpt2_124m --on h100-8 --json
  lmx plan quickstart --on cpu --png plan.png

Machines are v5e-N, v6e-N (N chips), v5p-N (N / 2 chips), 4xv5e-256 (slices), h100-8x4
and h200-8 (servers of 8), and cpu. Exit status: 0 it fits, 1 it does not fit, and the
output says which settings would; 2 invalid arguments or inputs.
"""
_OPTIONS = {
    "--on": {"required": True, "metavar": "MACHINE", "help": "such as v5p-128"},
    "--analytic": {"action": "store_true", "help": "arithmetic only, in a second"},
    "--search": {
        "type": int,
        "metavar": "N",
        "help": "try other meshes, remat policies and microbatches; compile the best N",
    },
    "--prices": {
        "type": Path,
        "default": DEFAULT_PRICES,
        "metavar": "FILE",
        "help": "US dollars per hour of each chip, a line each (lmx/plan/prices.txt)",
    },
    "--png": {"type": Path, "metavar": "FILE", "help": "also plot the prediction"},
}


def _plan(args: argparse.Namespace) -> Output:
    from lmx.plan import plot, report, search
    from lmx.plan.compiled.compile import compile_forecast

    config = load_experiment(args)
    asked = predict(config, args.on, args.prices)
    best = search.rank_settings(asked)[: args.search] if args.search else [asked]
    if not args.analytic:
        best = [compile_forecast(config, each, args.imports) for each in best]
        best.sort(key=lambda each: (not each.fits, each.seconds.step))
    forecast = best[0] if best else asked
    fixes = {} if forecast.fits else search.suggest(forecast)
    if args.png:
        plot.plot_forecast(forecast, args.png)
    text = report.format_report(forecast, fixes)
    if args.search:
        text = f"{report.format_ranking(asked, best)}\n\n{text}"
    data = {
        **forecast.to_json(),
        "would_fit": {
            x: search.format_overrides(forecast, f) for x, f in fixes.items()
        },
        "ranking": [
            {"settings": search.format_overrides(asked, each), **each.to_json()}
            for each in best
        ],
    }
    return Output(text, data, 0 if forecast.fits else 1)


def predict(config: "Config", name: str, prices: Path = DEFAULT_PRICES) -> "Forecast":
    """The analytic forecast of an experiment on a machine, or on `LOCAL`."""
    from lmx.plan import price, topology
    from lmx.plan.case import build_case
    from lmx.plan.forecast import make_forecast

    with explain_errors(config):
        local = name == LOCAL
        machine = topology.detect_machine() if local else topology.parse_machine(name)
        case = build_case(config.build(), machine)
        return make_forecast(case, price.load_price(case.machine.kind, prices))


COMMANDS = (
    Command(
        "plan",
        "CONFIG.gin",
        "memory, speed and cost on a machine, before it runs",
        _ABOUT,
        _plan,
        _OPTIONS,
        takes_overrides=True,
    ),
)
