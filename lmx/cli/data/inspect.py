"""`lmx data inspect`: statistics, samples and verification of a token store."""

import argparse
from pathlib import Path

from lmx.cli.command import Command, Output
from lmx.config.registry import ConfigError

_ABOUT = """\
Shows a token store: the number of documents and tokens, document lengths, the share of
each source, what was left out and why, and some documents as text. The autocorrelation
of the source says how well rows are mixed, as stored and as shuffled for training: a
value near chance means well mixed. Lengths are plotted in STORE.png.

--verify reads every byte and names each damaged file and where it is damaged. Exit
status 1 if there is one.

  lmx data inspect stores/books
  lmx data inspect stores/books --samples 10 --seed 1 --row 4096
  lmx data inspect stores/books --verify
"""
_OPTIONS = {
    "--verify": {"action": "store_true", "help": "only read and check every byte"},
    "--samples": {"type": int, "default": 3, "help": "documents to show (3)"},
    "--seed": {"type": int, "default": 0, "help": "seed of samples and shuffle (0)"},
    "--row": {"type": int, "default": 1024, "help": "tokens per shuffled row (1024)"},
    "--plot": {"type": Path, "help": "file for the plot of lengths"},
}


def _inspect(args: argparse.Namespace) -> Output:
    from lmx.data.store.stats import compute_stats, format_stats, plot_lengths

    for name, least in (("row", 1), ("samples", 0)):
        if (value := getattr(args, name)) < least:
            raise ConfigError(f"--{name} is {value}: at least {least}.")
    folder = Path(args.names[0])
    if args.verify:
        return _verify(folder)
    stats = compute_stats(
        folder, sequence_length=args.row, samples=args.samples, seed=args.seed
    )
    plot = args.plot or folder.with_name(f"{folder.resolve().name}.png")
    plot_lengths(folder, plot)
    return Output(
        f"{format_stats(stats)}\nlengths: {plot}", stats | {"plot": f"{plot}"}
    )


def _verify(folder: Path) -> Output:
    from lmx.data.store.store import load_store_tokenizer, read_manifest, verify

    manifest = read_manifest(folder)
    damages = [f"{damage}" for damage in verify(folder)]
    try:
        load_store_tokenizer(folder)
    except ConfigError as error:
        damages.append(f"{error}")
    intact = (
        f"{folder}: all bytes of {len(manifest['shards'])} shards,"
        f" {manifest['tokens']:,} tokens, are intact"
    )
    data = {"store": f"{folder}", "damages": damages}
    return Output("\n".join(damages) or intact, data, 1 if damages else 0)


COMMANDS = (
    Command(
        "data inspect",
        "STORE",
        "statistics of a token store, and verification",
        _ABOUT,
        _inspect,
        _OPTIONS,
    ),
)
