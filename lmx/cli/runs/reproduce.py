"""`lmx reproduce`: a run made again from its card, and compared with it."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmx.cli.config import add_import, import_modules
from lmx.cli.runs.replay import format_change
from lmx.cli.train import enable_float64, set_tpu_flags
from lmx.config.registry import ConfigError

if TYPE_CHECKING:
    from lmx.analysis.reproduce import Reproduction

_ABOUT = """\
Trains again what a card tells of, all of it or its first N steps, in a new folder, and
compares the losses with those on the card. They must be the same to the bit where
devices, mesh, versions of packages and flags of compilers are; elsewhere within 1%, or
what --within says. Says what is not alike, the commit among it. Exit status: 0 if the
losses are the same, 1 if they are not, 2 if it cannot be tried, as with other data.

  lmx reproduce runs/x/metadata.json
  lmx reproduce metadata.json --steps 100 --run /tmp/again
  lmx reproduce metadata.json Mesh.fsdp=1              on fewer devices: execution, no more
  lmx reproduce metadata.json --import mine            whose page names classes of `mine`

A card is all that is needed beside the data. It is read and never executed, and what
it names is part of lmx, or of the modules that --import gives.
"""


def add(parsers: Any) -> None:
    """Adds the verb `reproduce` to what `ArgumentParser.add_subparsers` returned."""
    parser = parsers.add_parser(
        "reproduce",
        help="make a run again from its card, and compare",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="lmx reproduce CARD [Name.parameter=value ...] [options]",
    )
    parser.set_defaults(run=run)
    parser.add_argument("words", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, metavar="N", help="the first N (all)")
    parser.add_argument("--run", dest="folder", type=Path, help="the new folder")
    parser.add_argument(
        "--within",
        type=float,
        metavar="PART",
        help="of itself, by which a loss may differ (0 where bits can be the same,"
        " elsewhere 0.01)",
    )
    parser.add_argument("--json", action="store_true", help="print it for a machine")
    add_import(parser)


def run(args: argparse.Namespace) -> int:
    """Runs it again. Returns the exit status: 1 if a loss differs."""
    from lmx.train.hooks.signals import StoppedError

    file, *overrides = args.words
    try:
        import_modules(args.imports)
        from lmx.analysis.reproduce import RunMetadata, apply_overrides, reproduce

        card = RunMetadata.load(Path(file))
        config = apply_overrides(card, overrides)
        enable_float64(config)
        set_tpu_flags()
        name = f"{card.fields['name']}-{config.run_id()}-again"
        folder = args.folder or Path("runs") / name
        found = reproduce(card, config, folder, args.steps, args.within)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StoppedError as stopped:
        print(f"{stopped}; nothing was compared", file=sys.stderr)
        return 128 + stopped.signum
    print(_json(folder, found) if args.json else text(folder, found))
    return 1 if found.differing_steps else 0


def _json(folder: Path, found: "Reproduction") -> str:
    pairs = {
        name: {"card": a, "here": b} for name, (a, b) in found.environment_diff.items()
    }
    said = {
        "run": str(folder),
        "steps": found.steps,
        "within": found.rtol,
        "same": not found.differing_steps,
        "losses": found.losses,
        "differing": found.differing_steps,
        "unlike": pairs,
    }
    return json.dumps(said, indent=1)


def text(folder: Path, found: "Reproduction") -> str:
    """What came of it, for the terminal."""
    lines = [f"{folder}: {found.steps:,} steps again"]
    if found.environment_diff:
        lines.append("not alike, on the card and here")
        lines += [
            format_change(name, *pair) for name, pair in found.environment_diff.items()
        ]
    how = f"within {found.rtol:g} of it" if found.rtol else "the same to the bit"
    count, differing = len(found.losses), found.differing_steps
    verdict = f"{len(differing)} are not" if differing else "all are"
    lines.append(f"{count} losses up to step {max(found.losses)}, {how}: {verdict}")
    for step in differing[:10]:
        was, now = found.losses[step]
        lines.append(f"  step {step:>8,}  {was!s:>22}  {now!s:>22}")
    return "\n".join(lines)
