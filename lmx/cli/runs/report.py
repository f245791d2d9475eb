"""`lmx report`: runs as one HTML page."""

import argparse
from pathlib import Path

from lmx.cli.command import Command, Output, option
from lmx.core.console import print_line


@Command(
    "report",
    "DIR",
    "a page for a browser about runs",
    {"--out": option("the page (DIR/report.html)", Path, metavar="FILE")},
)
def report(args: argparse.Namespace) -> Output:
    """Writes a page about the runs in a folder, such as those of a sweep.

    It has the table of `lmx runs`, curves of each loss, a scaling law where the
    finished runs determine one, the settings that differ, and commits, versions,
    devices, seeds and commands. It is one file that loads no other.

      lmx report runs
      lmx report sweeps/rate --out rates.html
    """
    from lmx.core.files import write_atomic
    from lmx.study.runs_report import render_report

    folder, file = Path(args.names[0]), args.out or Path(args.names[0], "report.html")
    print_line(f"reading the runs in {folder}, and fitting a law")
    command = f"lmx report {folder}{f' --out {file}' if args.out else ''}"
    page = render_report(folder, command)
    write_atomic(file, page.encode())
    return Output(f"{file}", {"file": f"{file}", "bytes": len(page)})
