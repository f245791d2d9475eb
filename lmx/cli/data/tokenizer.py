"""`lmx data tokenizer`: trains a tokenizer and reports statistics on held-out text."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmx.cli.command import Command, Output
from lmx.cli.load import import_modules
from lmx.config.discover import locate_config
from lmx.config.registry import ConfigError
from lmx.config.value import Config, explain_errors, walk

_ABOUT = """\
Trains a tokenizer on the train split of a corpus, writes its files to the folder OUT,
and reports on the validation split: bytes per token, the share of bytes in tokens that
are complete characters, how many tokens of the vocabulary are used, and the longest
tokens.

The corpus is a folder of texts, a file, or a .jsonl file, and the tokenizer is
SentencePiece by default; or a .gin config names both, in @TextDataset of an experiment
or in @BuildTokenStore.

  lmx data tokenizer texts/ out SentencePiece.vocab=8000
  lmx data tokenizer texts/ out SentencePiece.model_type=unigram
  lmx data tokenizer essay.txt out TextDataset.tokenizer=@BPE() BPE.vocab=2000
  lmx data tokenizer logs.jsonl out Text.text_field=body HoldoutDocuments.fraction=0.1
  lmx data tokenizer quickstart out SentencePiece.vocab=8192

A config reads it with @PretrainedTokenizer(), where PretrainedTokenizer.path is OUT.
"""
REPORT = "report.json"  # in the folder of the tokenizer
_DEFAULTS = (
    "TextDataset.batch_size=1",
    "TextDataset.sequence_length=1",
    "TextDataset.corpus=@Text()",
    "TextDataset.tokenizer=@SentencePiece()",
)


def _train(args: argparse.Namespace) -> Output:
    from lmx.core.files import create_dir
    from lmx.data.store.build import ConcatCorpus
    from lmx.data.tokenizer.stats import compute_stats

    import_modules(args.imports)
    source, out = args.names
    config, corpora, tokenizer_config = _load(source, args.overrides)
    data: dict[str, Any] = {"tokenizer": f"{tokenizer_config}"}

    def fill(folder: Path) -> None:
        with explain_errors(config):
            parts = tuple(corpus.build() for corpus in corpora)
            corpus = parts[0] if len(parts) == 1 else ConcatCorpus(parts)
            tokenizer = tokenizer_config.build().open(corpus)
            stats = compute_stats(tokenizer, corpus.read_nonempty("validation"))
        data.update(digest=tokenizer.digest, **stats._asdict())
        tokenizer.save(folder)
        (folder / REPORT).write_text(json.dumps(data, indent=2) + "\n")

    create_dir(Path(out), fill, "is not empty: give a new folder.")
    return Output(_format(out, data), {"folder": out, **data})


def _load(
    source: str, overrides: Sequence[str]
) -> tuple[Config, Sequence[Config], Config]:
    """The whole config, its corpora and its tokenizer."""
    from lmx.config.gin import parse
    from lmx.config.resolve import load
    from lmx.data.store.build import BuildTokenStore
    from lmx.data.text_dataset import TextDataset
    from lmx.train.experiment import Experiment

    if locate_config(source).suffix != ".gin":
        bindings = [*_DEFAULTS, f"Text.path={json.dumps(source)}"]
        if Path(source).is_file() and Path(source).suffix in (".txt", ".md", ".py"):
            bindings.append("Text.holdout=@HoldoutTail()")
        config = load([], [*bindings, *overrides], root=TextDataset)
        return config, [config["corpus"]], config["tokenizer"]
    if any(key.name == "BuildTokenStore" for key in parse([source], overrides)):
        config = load([source], overrides, root=BuildTokenStore)
        return config, list(config["sources"].values()), config["tokenizer"]
    config = load([source], overrides, root=Experiment)
    for _, node, *_ in walk(config["data"]):
        if isinstance(node, Config) and {"corpus", "tokenizer"} <= node.fields.keys():
            return config, [node["corpus"]], node["tokenizer"]
    raise ConfigError(
        f"{source} has no corpus with a tokenizer: use @TextDataset or"
        " @BuildTokenStore."
    )


def _format(folder: str, data: dict[str, Any]) -> str:
    return "\n".join(
        (
            f"{folder}: {data['tokenizer']}, {data['vocab']:,} tokens,"
            f" digest {data['digest'][:12]}",
            f"  held out  {data['bytes']:,} bytes in {data['documents']:,} documents:"
            f" {data['tokens']:,} tokens of {data['bytes_per_token']:.3f} bytes",
            f"  coverage  {data['coverage']:.3%} of bytes in complete characters",
            f"  used      {data['tokens_used']:,} tokens of the vocabulary",
            f"  longest   {' '.join(map(repr, data['longest']))}",
        )
    )


COMMANDS = (
    Command(
        "data tokenizer",
        "CORPUS|CONFIG.gin OUT",
        "a tokenizer trained on texts",
        _ABOUT,
        _train,
        takes_overrides=True,
    ),
)
