"""`lmx fit`: a scaling law of the losses of runs, with intervals."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lmx.cli.command import Command, Output, option
from lmx.config.registry import ConfigError, require
from lmx.core.console import warn_on_error

FORMS = ("chinchilla", "kaplan", "compute", "repeated", "routed")
FIELDS = {
    "n": "parameters",
    "d": "tokens of training",
    "c": "FLOPs of training",
    "loss": "losses",
    "unique": "tokens without repetition",
    "experts": "experts",
}
REPEATABLE = {
    "--where": ("COLUMN=VALUE", "only rows with this value"),
    "--pin": ("NAME=VALUE", "do not fit E or an exponent"),
    "--budget": ("C", "the optimum, or the loss, for these FLOPs"),
    "--predict": ("N,D", "the loss of a run"),
    "--against": ("NAME=VALUE,...", "hold given parameters against the fit"),
}


@Command(
    "fit",
    "POINTS",
    "a scaling law of the losses of runs",
    {
        "--form": option("of the law", default=FORMS[0]) | {"choices": FORMS},
        **{
            f"--{name}": option(f"the column of {what}", metavar="COLUMN")
            for name, what in FIELDS.items()
        },
        **{
            flag: option(f"{what} (repeatable)", default=[], metavar=metavar)
            | {"action": "append"}
            for flag, (metavar, what) in REPEATABLE.items()
        },
        "--drop-outliers": {"action": "store_true", "help": "fit without outliers"},
        "--delta": option("of the Huber loss of log residuals", float, 1e-3),
        "--draws": option("of the bootstrap", int, 1000),
        "--seed": option("of the bootstrap", int, 0),
        "--png": option("also plot", Path, metavar="FILE"),
    },
)
def fit(args: argparse.Namespace) -> Output:
    """Fits a scaling law to the runs in a folder, or to a table of runs.

    A CSV file needs a header such as n,d,loss: columns of the loss and of two of
    parameters N, tokens D and FLOPs C; the third is then by C = 6 N D. Of a folder, the
    finished runs count. Prints the parameters, compute-optimal N and D, three ways to
    the exponent of N over C, a test on the largest runs, the next runs that would help
    most, and what is doubtful. Each interval is of 95%: of the profile likelihood, and
    of the bootstrap.

      lmx fit points.csv
      lmx fit sweeps/ladder
      lmx fit points.csv --n params --d tokens --budget 1e21
      lmx fit points.csv --predict 70e9,1.4e12 --drop-outliers --png fit.png
      lmx fit points.csv --form compute --pin E=1.7 --json
      lmx fit points.csv --against E=1.69,A=406.4,B=410.7,alpha=0.34,beta=0.28

    Forms: chinchilla (E + A / N^alpha + B / D^beta), kaplan, compute (E + A / C^gamma,
    of the runs that no cheaper one beats), repeated (repeated data), routed (experts).
    """
    from lmx.study.check import compare, find_outliers
    from lmx.study.fit import fit_law
    from lmx.study.isoflop import find_frontier
    from lmx.study.law import LAWS
    from lmx.study.points import read_points
    from lmx.study.report import format_report, make_report, plot_fit, to_json

    path, columns = Path(args.names[0]), {name: getattr(args, name) for name in FIELDS}
    points = read_points(path, columns, args.where)
    points = find_frontier(points) if args.form == "compute" else points
    pinned = _parse_pairs("--pin", args.pin)
    best = fit_law(LAWS[args.form].build(points), points, args.delta, pinned)
    if args.drop_outliers and len(outliers := find_outliers(best)):
        kept = [i for i in range(len(points)) if i not in set(outliers)]
        points = points.select(kept)
        best = fit_law(LAWS[args.form].build(points), points, args.delta, pinned)
    budgets = [_parse_numbers("--budget", text, 1)[0] for text in args.budget]
    runs = [
        (n, d) for n, d in (_parse_numbers("--predict", x, 2) for x in args.predict)
    ]
    given = _parse_pairs("--against", ",".join(args.against).split(","))
    require(args.draws >= 2, f"--draws is {args.draws}, and must be 2 or more.")
    report = make_report(best, budgets, runs, args.draws, args.seed)
    comparison = compare(best, given) if given else None
    if args.png:
        with warn_on_error(f"plot {args.png}"):
            plot_fit(report, args.png)
    more = f"\n\nnext: lmx report {path}" * path.is_dir()
    text = format_report(report, comparison) + more
    return Output(text, to_json(report, comparison))


def _parse_pairs(flag: str, pairs: Sequence[str]) -> dict[str, float]:
    found = {}
    for pair in filter(None, pairs):
        name, _, value = pair.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            message = f"{flag}: {pair!r} must be NAME=VALUE with a number."
            raise ConfigError(message) from None
    return found


def _parse_numbers(flag: str, text: str, count: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(0 < x < float("inf") for x in numbers):
        wanted = "a number" if count == 1 else f"{count} numbers with a comma"
        raise ConfigError(f"{flag}: {text!r} must be {wanted}, above 0.")
    return numbers
