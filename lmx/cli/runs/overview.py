"""`lmx runs`: a table of runs."""

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmx.cli.command import Command, Output, option
from lmx.config.registry import require
from lmx.core.console import format_table

Row = Mapping[str, Any]


@Command(
    "runs",
    "[DIR]",
    "a table of runs",
    {
        "--csv": {"action": "store_true", "help": "print CSV"},
        "--parquet": option("also write the table", Path, metavar="FILE"),
    },
)
def list_all(args: argparse.Namespace) -> Output:
    """Lists the runs in a folder, runs/ by default, and in the folders in it.

    One line each: state, steps done and planned, size, tokens, FLOPs, seconds, the
    settings that are not the same in all of them, and the last losses. A part with
    another class is shown without its settings. A run is running if a process of this
    machine has locked it, or one of another machine has not unlocked it.

      lmx runs
      lmx runs sweeps/rate --csv > rates.csv
      lmx runs sweeps/rate --parquet rates.parquet
    """
    from lmx.core.files import open_atomic
    from lmx.data.optional import import_optional
    from lmx.run.overview import list_runs, read_runs

    folder = Path(*args.names or ("runs",))
    rows = list_runs(folder)
    require(rows, f"{folder} has no runs: give the folder that has them.")
    if args.parquet:
        frame = read_runs(folder)
        import_optional("pyarrow", "data", "to write Parquet")
        with open_atomic(args.parquet) as file:
            frame.to_parquet(file)
    return Output(format_rows(rows, args.csv), rows)


def format_rows(rows: Sequence[Row], as_csv: bool = False) -> str:
    """Rows of runs as a table, or as CSV; empty cells for missing names."""
    header = [*dict.fromkeys(name for row in rows for name in row)]
    table = [[row.get(name, "") for name in header] for row in rows]
    if not as_csv:
        text = [[f"{x:.4f}" if type(x) is float else x for x in row] for row in table]
        return format_table(header, text, 2)
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([header, *table])
    return file.getvalue().rstrip()
