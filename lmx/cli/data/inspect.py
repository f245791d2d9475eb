"""`lmx data inspect`: what is in a token store, and whether it is whole."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lmx.config.registry import ConfigError

EXAMPLES = """\
  lmx data inspect stores/books                    what is in it, and a picture
  lmx data inspect stores/books --verify           reads every byte of it
"""
_ABOUT = """\
Looks at a token store: how many documents and tokens, how long documents are, what each
source has of it, what was left out and why, and some documents as text. The
autocorrelation of source says how mixed the rows are, as they are stored and as they
are shuffled for training: near chance is well mixed. Lengths are drawn in STORE.png.

--verify reads every byte and names each file that is not as it was written, and where.
Exit status 1 if there is one.

  lmx data inspect stores/books
  lmx data inspect stores/books --samples 10 --seed 1 --row 4096
  lmx data inspect stores/books --verify
"""


def add(parsers: Any) -> None:
    """Adds the verb to what `ArgumentParser.add_subparsers` returned."""
    parser = parsers.add_parser(
        "inspect",
        help="what is in a token store, and whether it is whole",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="lmx data inspect STORE [options]",
    )
    parser.set_defaults(run=run)
    parser.add_argument("words", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
    parser.add_argument("--verify", action="store_true", help="read every byte instead")
    parser.add_argument("--samples", type=int, default=3, help="documents shown (3)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of samples and shuffle (0)"
    )
    parser.add_argument(
        "--row", type=int, default=1024, help="tokens of a shuffled row (1024)"
    )
    parser.add_argument("--plot", type=Path, help="where the lengths are drawn")
    parser.add_argument("--json", action="store_true", help="print it for a machine")


def run(args: argparse.Namespace) -> int:
    """Looks. Returns the exit status."""
    try:
        if len(args.words) != 1:
            raise ConfigError(f"got {' '.join(args.words)!r}: name one STORE")
        for name, least in (("row", 1), ("samples", 0)):
            if getattr(args, name) < least:
                raise ConfigError(
                    f"--{name} is {getattr(args, name)}: at least {least}."
                )
        folder = Path(args.words[0])
        return _verify(folder, args) if args.verify else _look(folder, args)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _look(folder: Path, args: argparse.Namespace) -> int:
    from lmx.data.store.stats import compute_stats, format_stats, plot_lengths

    told = compute_stats(
        folder, sequence_length=args.row, samples=args.samples, seed=args.seed
    )
    told["plot"] = f"{args.plot or folder.with_name(f'{folder.resolve().name}.png')}"
    plot_lengths(folder, Path(told["plot"]))
    print(
        json.dumps(told)
        if args.json
        else f"{format_stats(told)}\nlengths: {told['plot']}"
    )
    return 0


def _verify(folder: Path, args: argparse.Namespace) -> int:
    from lmx.data.store.store import load_store_tokenizer, read_manifest, verify

    told = read_manifest(folder)
    damages = [f"{damage}" for damage in verify(folder)]
    try:
        load_store_tokenizer(folder)
    except ConfigError as error:
        damages.append(f"{error}")
    if args.json:
        print(json.dumps({"store": f"{folder}", "damages": damages}))
    elif damages:
        print("\n".join(damages))
    else:
        print(
            f"{folder}: every byte of {len(told['shards'])} shards,"
            f" {told['tokens']:,} tokens, is as it was written"
        )
    return 1 if damages else 0
