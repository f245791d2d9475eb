"""`lmx data tokenizer`: trains a tokenizer, and says what it makes of held-out text."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lmx.cli.config import add_import, import_modules
from lmx.config.node import Node, iter_fields
from lmx.config.registry import ConfigError
from lmx.config.value import Config

EXAMPLES = """\
  lmx data tokenizer texts/ tokenizers/bpe         a tokenizer out of texts
"""
_ABOUT = """\
Trains a tokenizer on the train split of a corpus, writes its files into the folder OUT,
and reports on the validation split: bytes per token, how much of it stands in pieces of
whole characters, how many of the tokens it takes, and the longest pieces.

A corpus is a folder of texts, a file, or JSON objects by the line, and its tokenizer
SentencePiece unless said otherwise; a .gin page names both, as an experiment's @TextDataset
or as @BuildTokenStore does.

  lmx data tokenizer texts/ out SentencePiece.vocab=8000 SentencePiece.model_type=unigram
  lmx data tokenizer essay.txt out TextDataset.tokenizer=@BPE() BPE.vocab=2000
  lmx data tokenizer logs.jsonl out Text.text_field=body HoldoutDocuments.fraction=0.1
  lmx data tokenizer experiments/quickstart.gin out SentencePiece.vocab=8192

A page reads it back with @PretrainedTokenizer(), where PretrainedTokenizer.path is the folder.
"""
REPORT = "report.json"  # beside the files of the tokenizer
CORPUS = (
    "TextDataset.batch_size=1",
    "TextDataset.sequence_length=1",
    "TextDataset.corpus=@Text()",
    "TextDataset.tokenizer=@SentencePiece()",
)


def add(parsers: Any) -> None:
    """Adds the verb to what `ArgumentParser.add_subparsers` returned."""
    parser = parsers.add_parser(
        "tokenizer",
        help="a tokenizer out of texts",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="lmx data tokenizer PAGE|CORPUS OUT [Name.parameter=value ...] [options]",
    )
    parser.set_defaults(run=run)
    parser.add_argument("words", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print it for a machine")
    add_import(parser)


def run(args: argparse.Namespace) -> int:
    """Trains and reports. Returns the exit status."""
    overrides = [word for word in args.words if "=" in word]
    names = [word for word in args.words if "=" not in word]
    try:
        if len(names) != 2:
            raise ConfigError(
                f"got {' '.join(names)!r}: write lmx data tokenizer PAGE|CORPUS OUT"
            )
        import_modules(args.imports)
        told = _trained(names[0], Path(names[1]), overrides)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(told, indent=2) if args.json else _text(told))
    return 0


def _trained(source: str, out: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Trains, writes the files, and reports."""
    from lmx.config.value import explain_errors
    from lmx.core.files import create_dir
    from lmx.data.store.build import ConcatCorpus
    from lmx.data.tokenizer.stats import compute_stats

    config, corpora, tokenizer = _said(source, overrides)
    told: dict[str, Any] = {"folder": f"{out}", "tokenizer": f"{tokenizer}"}

    def fill(folder: Path) -> None:
        with explain_errors(config):
            every = tuple(corpus.build() for corpus in corpora)
            corpus = every[0] if len(every) == 1 else ConcatCorpus(every)
            codec = tokenizer.build().open(corpus)
            found = compute_stats(codec, corpus.read_nonempty("validation"))
        told.update(digest=codec.digest, **found._asdict())
        codec.save(folder)
        kept = {name: value for name, value in told.items() if name != "folder"}
        (folder / REPORT).write_text(json.dumps(kept, indent=2) + "\n")

    create_dir(out, fill, "is not empty: give a new folder.")
    return told


def _said(
    source: str, overrides: Sequence[str]
) -> tuple[Config, Sequence[Config], Config]:
    """The configuration, and its corpora and tokenizer."""
    from lmx.config.parse import parse
    from lmx.config.resolve import load
    from lmx.data.store.build import BuildTokenStore
    from lmx.data.text_dataset import TextDataset

    if not source.endswith(".gin"):
        given = [*CORPUS, f"Text.path={json.dumps(source)}"]
        if Path(source).is_file() and Path(source).suffix in (".txt", ".md", ".py"):
            given.append("Text.holdout=@HoldoutTail()")
        config = load([], [*given, *overrides], root=TextDataset)
        return config, [config["corpus"]], config["tokenizer"]
    if any(key.name == "Build" for key in parse([source], overrides)):
        config = load([source], overrides, root=BuildTokenStore)
        return config, list(config["sources"].values()), config["tokenizer"]
    from lmx.train.experiment import Experiment

    config = load([source], overrides, root=Experiment)
    for node in _nodes(config):
        if {"corpus", "tokenizer"} <= node.fields.keys():
            return config, [node["corpus"]], node["tokenizer"]
    raise ConfigError(
        f"{source} names no corpus with a tokenizer, as @TextDataset or @BuildTokenStore does."
    )


def _nodes(config: Config) -> Iterator[Config]:
    """The nodes of what an experiment learns from, from the outermost inwards."""
    data = config["data"]
    seen: list[Node] = []
    for _, owner, _ in iter_fields(data):
        if owner not in seen and isinstance(owner, Config):
            seen.append(owner)
            yield owner


def _text(told: dict[str, Any]) -> str:
    """The report for the eye."""
    longest = " ".join(map(repr, told["longest"]))
    return "\n".join(
        (
            f"{told['folder']}: {told['tokenizer']}, {told['vocab']:,} tokens,"
            f" digest {told['digest'][:12]}",
            f"  held out  {told['bytes']:,} bytes in {told['documents']:,} documents:"
            f" {told['tokens']:,} tokens of {told['bytes_per_token']:.3f} bytes",
            f"  coverage  {told['coverage']:.3%} of them in pieces of whole characters",
            f"  used      {told['used']:,} of the tokens",
            f"  longest   {longest}",
        )
    )
