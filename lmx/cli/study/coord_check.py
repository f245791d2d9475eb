"""`lmx coord-check`: whether a model learns alike in all widths and depths."""

import argparse
from pathlib import Path

from lmx.cli.command import Command, Output, option
from lmx.cli.load import load_root
from lmx.config.registry import require
from lmx.core.console import warn_on_error


def sizes(text: str) -> list[int]:
    """Two or more numbers with commas."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1 or len({*found}) < 2:
        raise ValueError(text)
    return found


@Command(
    "coord-check",
    "CONFIG",
    "whether a model learns alike in all widths and depths",
    {
        "--widths": option("of the model (five over 16x)", sizes, None, "W,W,..."),
        "--depths": option("(five over 16x with CompleteP)", sizes, None, "L,L,..."),
        "--grow": option("with the width", default="heads")
        | {"choices": ("heads", "head_dim")},
        "--steps": option("of training", int, 10),
        "--seeds": option("of initial weights, at least 2", int, 3),
        "--png": option("also plot", Path, metavar="FILE"),
    },
    takes_overrides=True,
)
def coord_check(args: argparse.Namespace) -> Output:
    """Trains models of several widths and depths for a few steps, and compares them.

    Prints how fast each quantity grows with size: the slope of log2 of its change over
    log2 of the width or depth, with a t interval over seeds. With a parametrization
    that transfers, such as CompleteP, no change depends on size: a slope whose interval
    is outside of -0.05 to 0.05 fails, and the exit status is 1. Initial values are
    shown and not judged. All widths of the config's model grow together: hidden layers
    and heads too.

      lmx coord-check experiments/x.gin
      lmx coord-check experiments/x.gin --widths 16,32,64 --depths 2,4 --png check.png
    """
    from lmx.study.coord_check import (
        check_coordinates,
        format_check,
        list_failures,
        plot_check,
    )

    message = (
        f"--seeds {args.seeds} --steps {args.steps}: take 2 seeds, 1 step or more."
    )
    require(args.seeds >= 2 and args.steps >= 1, message)
    checks = check_coordinates(
        load_root(args, "Experiment"),
        args.widths,
        args.depths,
        steps=args.steps,
        seeds=args.seeds,
        head_dim=args.grow == "head_dim",
    )
    if args.png:
        with warn_on_error(f"plot {args.png}"):
            plot_check(checks, args.png)
    failed = bool(list_failures(checks))
    slopes = [
        {**slope._asdict(), "passes": bool(slope.passes)}
        for check in checks
        for slope in check.slopes()
    ]
    data = {"passes": not failed, "slopes": slopes}
    return Output(format_check(checks), data, int(failed))
