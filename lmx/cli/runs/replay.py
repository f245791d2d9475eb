"""`lmx replay`: steps of a run once more, to the same bits, or changed in some way."""

import argparse
import json
import sys
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from lmx.cli.config import add_import, import_modules
from lmx.cli.train import enable_float64, set_tpu_flags
from lmx.config.registry import ConfigError

if TYPE_CHECKING:
    from lmx.analysis.history import RecordedRun
    from lmx.analysis.replay import Replay

_ABOUT = """\
Goes back to the newest state of a run before step N (the step that metrics.jsonl calls
N), or to its beginning, runs to the end of step N, and shows what was logged beside
what is measured now. On the same machine and mesh both are the same to the bit, or the
exit status is 1. Bindings say what is to be another way this time: then it shows what
that changes. Nothing is written.

  lmx replay runs/x --step 1200
  lmx replay runs/x --step 1200 Constant.peak_lr=0.001     what if the rate had been lower
  lmx replay runs/x --step 1200 Mesh.fsdp=1             on fewer devices
  lmx replay runs/x --step 1200 --json

Run it where the run was started, if its page names files by where they lie from there.
"""


def add(parsers: Any) -> None:
    """Adds the verb `replay` to what `ArgumentParser.add_subparsers` returned."""
    parser = parsers.add_parser(
        "replay",
        help="run steps of a run once more, to the same bits",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="lmx replay RUN --step N [Name.parameter=value ...] [options]",
    )
    parser.set_defaults(run=run)
    add_step(parser)


def add_step(parser: argparse.ArgumentParser) -> None:
    """Adds what every verb takes that goes back to a step of a run."""
    parser.add_argument("words", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
    parser.add_argument(
        "--step", type=int, required=True, metavar="N", help="counted from 1"
    )
    parser.add_argument("--json", action="store_true", help="print it for a machine")
    add_import(parser)


def run(args: argparse.Namespace) -> int:
    """Replays. Returns the exit status: 1 if nothing is bound and something differs."""
    try:
        past = open_recorded_run(args)
        from lmx.analysis.replay import replay

        found = replay(past, args.step)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(_json(past, found) if args.json else _text(past, found))
    return 1 if found.differences and not past.changes else 0


def open_recorded_run(args: argparse.Namespace) -> "RecordedRun":
    """The run that is meant, with what is bound."""
    folder, *overrides = args.words
    import_modules(args.imports)
    from lmx.analysis.history import RecordedRun, load_run_config

    enable_float64(load_run_config(Path(folder), overrides))
    set_tpu_flags()
    return RecordedRun.open(Path(folder), overrides)


def _json(past: "RecordedRun", found: "Replay") -> str:
    said = {
        "run": str(past.folder),
        "from": found.start_step,
        "step": found.step,
        "bound": [*past.changes],
        "compared": found.num_compared,
        "equal": not found.differences,
        "logged": found.logged,
        "replayed": found.replayed,
    }
    return json.dumps(said, indent=1)


def _text(past: "RecordedRun", found: "Replay") -> str:
    lines = [
        f"{past.folder}: from the state of step {found.start_step} to step {found.step}"
    ]
    lines += [format_change(path, *pair) for path, pair in past.changes.items()]
    lines += table(found)
    steps = f"{len(found.logged)} logged steps" if len(found.logged) != 1 else "1 step"
    lines.append(f"{found.num_compared} numbers of {steps} compared: {_verdict(found)}")
    if found.differences and not past.changes:
        lines += [
            format_change(name, *pair) for name, pair in past.environment_diff.items()
        ]
    return "\n".join(lines)


def format_change(name: str, old: Any, new: Any) -> str:
    """A line that says what is another way: what it was, and what it is."""
    was, now = (shorten(f"{value}", 60, placeholder=" ...") for value in (old, new))
    return f"  {name}: {was} -> {now}"


def _verdict(found: "Replay") -> str:
    if not found.num_compared:
        return "none of these steps was logged"
    differing = found.differences
    if not differing:
        return "all equal to the bit"
    step = differing[0][0]
    return f"{len(differing)} differ, the first at step {step} ({differing[0][1]})"


def table(found: "Replay") -> list[str]:
    """What step N measured, then and now; of layers only what differs."""
    now, then = found.replayed[found.step], found.logged.get(found.step, {})
    names = [n for n in now if "/" not in n or then.get(n, now[n]) != now[n]]
    width = max(map(len, names))
    head = f"{'step ' + format(found.step, ','):{width}}  {'logged':>22}"
    lines = [f"{head}  {'replayed':>22}"]
    for name in names:
        was = f"{then.get(name, '')}"
        lines.append(f"{name:{width}}  {was:>22}  {now[name]!s:>22}")
    return lines
