"""`lmx plan`: memory, speed and cost of an experiment on a machine, before it runs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lmx.cli.command import Command, Output, option
from lmx.cli.load import load_experiment
from lmx.config.value import Config, explain_errors

if TYPE_CHECKING:
    from lmx.plan.forecast import Forecast

LOCAL = "local"  # the devices of this machine


@Command(
    "plan",
    "CONFIG.gin",
    "memory, speed and cost on a machine, before it runs",
    {
        "--on": option("such as v5p-128", metavar="MACHINE") | {"required": True},
        "--analytic": {"action": "store_true", "help": "arithmetic only, in a second"},
        "--search": option("try other settings; compile the best N", int, metavar="N"),
        "--prices": option(
            "US dollars per hour, as in v5p = 4.2", Path, metavar="FILE"
        ),
        "--tensors": {"action": "store_true", "help": "also list every tensor"},
        "--png": option("also plot the prediction", Path, metavar="FILE"),
    },
    takes_overrides=True,
)
def plan(args: argparse.Namespace) -> Output:
    """Predicts whether an experiment fits a machine, its speed, limits and cost.

    Needs neither the machine nor the data. For TPUs the training step is compiled
    (`pip install 'lmx[tpu]'`), which takes minutes; for GPUs, and with --analytic, the
    prediction is arithmetic only. The verdict comes first: whether it fits, and if not,
    what would. --search varies mesh, remat and microbatches.

      lmx plan families/llama2_70b 'Attention.backend=@SplashAttention()' --on v5p-128
      lmx plan families/llama3_8b Mesh.fsdp=256 --on v5e-256 --analytic
      lmx plan families/llama2_70b --on 4xv5e-256 --search 2
      lmx plan gpt2_124m --on h100-8 --json
      lmx plan quickstart --on cpu --png plan.png

    Machines are v5e-N, v6e-N (N chips), v5p-N (N / 2 chips), 4xv5e-256 (slices),
    h100-8x4 and h200-8 (servers of 8), and cpu. Exit status: 0 it fits, 1 it does not
    fit, and the output says which settings would; 2 invalid arguments or inputs.
    """
    from lmx.plan import report, search
    from lmx.plan.compile import compile_forecast

    config = load_experiment(args)
    base = predict(config, args.on, args.prices)
    best = search.rank_settings(base)[: args.search] if args.search else [base]
    if not args.analytic:
        best = [compile_forecast(config, each, args.imports) for each in best]
        best.sort(key=lambda each: (not each.fits, each.seconds.step))
    forecast = best[0] if best else base
    fixes = search.suggest(config, forecast)
    if args.png:
        report.plot_forecast(forecast, args.png)
    text = report.format_report(forecast, fixes, args.tensors)
    if args.search:
        text = f"{text}\n\n{report.format_ranking(base, best)}"
    describe = search.format_overrides
    data = {
        **forecast.to_json(),
        "would_fit": {name: describe(forecast, each) for name, each in fixes.items()},
        "ranking": [{"settings": describe(base, f), **f.to_json()} for f in best],
    }
    return Output(text, data, 0 if forecast.fits else 1)


def predict(config: Config, name: str, prices: Path | None = None) -> "Forecast":
    """The analytic forecast of an experiment on a machine, or on `LOCAL`."""
    from lmx.plan import case, forecast, topology

    with explain_errors(config):
        local = name == LOCAL
        machine = topology.detect_machine() if local else topology.parse_machine(name)
        price = topology.load_price(machine.kind, prices)
        return forecast.make_forecast(case.build_case(config.build(), machine), price)
