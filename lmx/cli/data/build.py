"""`lmx data build`: a token store out of corpora."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from lmx.cli.config import add_import, import_modules
from lmx.config.registry import ConfigError

EXAMPLES = """\
  lmx data build pages/books.gin stores/books      corpora, filters, tokens: a store
"""
_ABOUT = """\
Builds a token store in the folder OUT: what a page's root, @BuildTokenStore, says of its sources,
filters and tokenizer. A page can be as short as this:

  BuildTokenStore:
    sources = {'books': @books/Text(), 'web': @Parquet()}
    tokenizer = @ByteTokenizer()
    filters = [@LengthFilter()]
  books/Text.path = 'texts'            # a folder, a file, .jsonl or .jsonl.zst
  Parquet.path = 'web'                 # there are ArrayRecord and HuggingFace too
  LengthFilter.min_chars = 200

It works with a process for each core. After a kill, Ctrl-C or a loss of power the same
command goes on, and ends with the same bytes as one that was never stopped. A finished
store takes what is new: files that were added to a source, and new sources. Files that
it has are not read again. Documents that are broken or empty are refused, or counted
and left out up to the limits BuildTokenStore.max_invalid_fraction and BuildTokenStore.max_empty_fraction.

  lmx data build books.gin stores/books
  lmx data build books.gin stores/books-val BuildTokenStore.split=validation
  lmx data build books.gin stores/books BuildTokenStore.max_invalid_fraction=0.001 ProcessPool.workers=8
  lmx data build books.gin stores/books 'BuildTokenStore.executor=@RayExecutor()'   on a cluster
"""


def add(parsers: Any) -> None:
    """Adds the verb to what `ArgumentParser.add_subparsers` returned."""
    parser = parsers.add_parser(
        "build",
        help="a token store out of corpora",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="lmx data build PAGE.gin OUT [Name.parameter=value ...] [options]",
    )
    parser.set_defaults(run=run)
    parser.add_argument("words", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print it for a machine")
    add_import(parser)


def run(args: argparse.Namespace) -> int:
    """Builds. Returns the exit status."""
    from lmx.data.store.executor import WorkerError

    overrides = [word for word in args.words if "=" in word]
    names = [word for word in args.words if "=" not in word]
    try:
        if len(names) != 2:
            raise ConfigError(
                f"got {' '.join(names)!r}: write lmx data build PAGE.gin OUT"
            )
        page, folder = names
        told = _built(page, Path(folder), overrides, args.imports)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WorkerError as error:
        print(f"error: {error}\nthe same command goes on: {names[1]}", file=sys.stderr)
        return 75
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on: {names[1]}", file=sys.stderr)
        return 130
    print(json.dumps(told) if args.json else _text(told))
    return 0


def _built(
    page: str, folder: Path, overrides: list[str], imports: list[str]
) -> dict[str, Any]:
    """Builds the store of a page. Returns what it came to."""
    from lmx.config.resolve import load
    from lmx.config.value import explain_errors
    from lmx.data.store.build import BuildTokenStore
    from lmx.data.store.store import read_manifest

    import_modules(imports)
    config = load([page], overrides, root=BuildTokenStore)
    began = time.monotonic()
    with explain_errors(config):
        store = config.build().write(folder)
    told = read_manifest(folder)
    return {
        "store": f"{folder}",
        **{name: told[name] for name in ("documents", "tokens", "bytes")},
        "shards": len(told["shards"]),
        "excluded": told["excluded"],
        "fingerprint": dict(store.fingerprint),
        "seconds": time.monotonic() - began,
    }


def _text(told: dict[str, Any]) -> str:
    """What a store came to, and what did not come into it."""
    lines = [
        f"{told['store']}: {told['documents']:,} documents, {told['tokens']:,} tokens"
        f" of {told['bytes'] / 1e6:,.1f} MB of text, {told['shards']} shards,"
        f" {told['seconds']:.0f} s"
    ]
    from lmx.data.store.stats import format_excluded

    return "\n".join((*lines, *format_excluded(told["excluded"])))
