"""`lmx compare`: which of two experiments is better, over several seeds."""

import argparse
from pathlib import Path

from lmx.cli.command import OVERRIDES, Command, Output, option
from lmx.cli.sweep import RESTARTS, make_start
from lmx.config.registry import require
from lmx.core.console import warn_on_error

_CHANGE = option("a setting of B alone (repeatable)", default=[], metavar=OVERRIDES)


@Command(
    "compare",
    "A [B]",
    "which of two experiments is better, over several seeds",
    {
        "--with": _CHANGE | {"action": "append", "dest": "changes"},
        "--seeds": option("runs of each (5)", int, 5, "N"),
        "--max-seeds": option("look at 3 seeds and on, up to N", int, metavar="N"),
        "--out": option("the folder of the runs (sweeps/A-B)", Path, metavar="DIR"),
        **RESTARTS,
        "--png": option("also plot", Path, metavar="FILE"),
    },
    takes_overrides=True,
)
def compare(args: argparse.Namespace) -> Output | int:
    """Trains two experiments with the same seeds, and compares their final losses.

    A seed sets the order of the data and the initial weights of both. The verdict is
    of Student's t on the differences between the runs of each seed: B is better, worse,
    or one cannot tell, at an error rate of 5%. With --max-seeds it looks after every
    seed from the third on and stops at a verdict; the rate is of all looks together.
    Start the command several times to share the runs, or again to resume it. Two
    folders of finished runs are compared as they are.

      lmx compare A.gin B.gin --seeds 8
      lmx compare A.gin --with Decoder.depth=3 --max-seeds 20 --png compare.png
      lmx compare sweeps/A-B/A sweeps/A-B/B --json
    """
    import jax

    from lmx.run.run_dir import CONFIG
    from lmx.study import comparison
    from lmx.study.report import to_plain

    jax.config.update("jax_platforms", "cpu")  # leaves other devices to the runs
    first, second = names = args.names[0], args.names[-1]
    if all(Path(name).is_dir() for name in names):
        require(
            not (args.overrides or args.changes),
            "runs in folders have their settings: name configs to change some.",
        )
        files = (sorted(Path(name).rglob(CONFIG)) for name in names)
        a, b = (comparison.read_side([x.parent for x in each]) for each in files)
    else:
        changed = [*args.overrides, *args.changes]
        sides = comparison.run_pairs(
            [(first, args.overrides), (second, changed)],
            args.out or Path("sweeps", f"{Path(first).stem}-{Path(second).stem}"),
            make_start(args),
            args.seeds,
            args.max_seeds,
        )
        if isinstance(sides, int):
            return sides
        a, b = sides
    result = comparison.compare_sides(a, b, args.max_seeds)
    notes = comparison.list_notes(a, b, result)
    if args.png:
        with warn_on_error(f"plot {args.png}"):
            comparison.plot_comparison(a, b, result, args.png)
    text = comparison.format_comparison(result, notes)
    return Output(text, to_plain({**result._asdict(), "notes": notes}))
