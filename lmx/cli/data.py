"""`lmx data build | inspect | tokenizer | dedup | filter | decontaminate`."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmx.cli.command import Command, Output, option
from lmx.cli.load import load_root
from lmx.config.gin import parse
from lmx.config.registry import ConfigError, locate_config, require
from lmx.config.resolve import resolve
from lmx.config.value import Config, explain_errors, walk

REPORT = "report.json"  # in the folder of a tokenizer
_SELECTS: Any = {"takes_overrides": True, "hint": "nothing was written to {1}"}


@Command(
    "data build",
    "CONFIG.gin OUT",
    "a token store from corpora",
    takes_overrides=True,
    hint="the same command resumes: {1}",
)
def build(args: argparse.Namespace) -> Output:
    """Builds a token store in the folder OUT.

    The root of the config is @BuildTokenStore. It can be as short as this:

      BuildTokenStore:
        sources = {'books': @books/Text(), 'web': @Parquet()}
        tokenizer = @ByteTokenizer()
        filters = [@LengthFilter()]
      books/Text.path = 'texts'            # a folder, a file, .jsonl or .jsonl.zst
      Parquet.path = 'web'                 # or ArrayRecord, HuggingFaceDataset
      LengthFilter.min_chars = 200

    It runs one process per core. After a kill, Ctrl-C or a power failure, the same
    command resumes and produces the same bytes as an uninterrupted build. A finished
    store can be extended: new files of a source and new sources are added, and files
    that it already has are not read again. Invalid or empty documents are an error, or
    are counted and skipped up to the limits BuildTokenStore.max_invalid_fraction and
    max_empty_fraction.

      lmx data build books.gin stores/books
      lmx data build books.gin stores/books-val BuildTokenStore.split=validation
      lmx data build books.gin stores/books ProcessPool.workers=8
      lmx data build books.gin stores/books 'BuildTokenStore.executor=@RayExecutor()'
    """
    from lmx.data.store.stats import format_excluded
    from lmx.data.store.store import read_manifest

    config, folder = load_root(args, "BuildTokenStore"), Path(args.names[1])
    started = time.monotonic()
    with explain_errors(config):
        store = config.build().write(folder)
    manifest = read_manifest(folder)
    data = {
        "store": f"{folder}",
        **{k: manifest[k] for k in ("documents", "tokens", "bytes", "excluded")},
        "shards": len(manifest["shards"]),
        "fingerprint": dict(store.fingerprint),
        "seconds": time.monotonic() - started,
    }
    text = (
        f"{folder}: {data['documents']:,} documents, {data['tokens']:,} tokens of"
        f" {data['bytes'] / 1e6:,.1f} MB of text, {data['shards']} shards,"
        f" {data['seconds']:.0f} s"
    )
    return Output("\n".join((text, *format_excluded(data["excluded"]))), data)


@Command(
    "data inspect",
    "STORE",
    "statistics of a token store, and verification",
    {
        "--verify": {"action": "store_true", "help": "only read and check every byte"},
        "--samples": option("documents to show (3)", int, 3),
        "--seed": option("seed of samples and shuffle (0)", int, 0),
        "--row": option("tokens per shuffled row (1024)", int, 1024),
        "--plot": option("file for the plot of lengths", Path),
    },
)
def inspect(args: argparse.Namespace) -> Output:
    """Shows a token store.

    The number of documents and tokens, document lengths, the share of each source, what
    was left out and why, and some documents as text. The autocorrelation of the source
    says how well rows are mixed, as stored and as shuffled for training: a value near
    chance means well mixed. Lengths are plotted in STORE.png.

    --verify reads every byte and names each damaged file and where it is damaged. Exit
    status 1 if there is one.

      lmx data inspect stores/books
      lmx data inspect stores/books --samples 10 --seed 1 --row 4096
      lmx data inspect stores/books --verify
    """
    from lmx.data.store.stats import compute_stats, format_stats, plot_lengths

    for name, least in (("row", 1), ("samples", 0)):
        value = getattr(args, name)
        require(value >= least, f"--{name} is {value}: at least {least}.")
    folder = Path(args.names[0])
    if args.verify:
        return _verify(folder)
    stats = compute_stats(
        folder, sequence_length=args.row, samples=args.samples, seed=args.seed
    )
    plot = args.plot or folder.with_name(f"{folder.resolve().name}.png")
    plot_lengths(folder, plot)
    text = f"{format_stats(stats)}\nlengths: {plot}"
    return Output(text, stats | {"plot": f"{plot}"})


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


@Command(
    "data tokenizer",
    "CORPUS|CONFIG.gin OUT",
    "a tokenizer trained on texts",
    takes_overrides=True,
)
def train_tokenizer(args: argparse.Namespace) -> Output:
    """Trains a tokenizer on the train split of a corpus.

    Writes its files to the folder OUT, and reports on the validation split: bytes per
    token, the share of bytes in tokens that are complete characters, how many tokens of
    the vocabulary are used, and the longest tokens.

    The corpus is a folder of texts, a file, or a .jsonl file, and the tokenizer is
    SentencePiece by default; or a .gin config names both, in @TextDataset of an
    experiment or in @BuildTokenStore.

      lmx data tokenizer texts/ out SentencePiece.vocab=8000
      lmx data tokenizer texts/ out SentencePiece.model_type=unigram
      lmx data tokenizer essay.txt out TextDataset.tokenizer=@BPE() BPE.vocab=2000
      lmx data tokenizer a.jsonl out Text.text_field=body HoldoutDocuments.fraction=0.1
      lmx data tokenizer quickstart out SentencePiece.vocab=8192

    A config reads it with @PretrainedTokenizer(); set PretrainedTokenizer.path to OUT.
    """
    from lmx.core.files import create_dir
    from lmx.data.store.build import ConcatCorpus
    from lmx.data.tokenizer.stats import compute_stats

    source, out = args.names
    config, corpora, tokenizer_config = _load_corpora(source, args.overrides)
    with create_dir(Path(out), "is not empty: give a new folder.") as folder:
        with explain_errors(config):
            parts = tuple(corpus.build() for corpus in corpora)
            corpus = parts[0] if len(parts) == 1 else ConcatCorpus(parts)
            tokenizer = tokenizer_config.build().open(corpus)
            stats = compute_stats(tokenizer, corpus.read_nonempty("validation"))
        data = {"tokenizer": f"{tokenizer_config}", "digest": tokenizer.digest}
        data |= stats
        tokenizer.save(folder)
        (folder / REPORT).write_text(json.dumps(data, indent=2) + "\n")
    return Output(_format_tokenizer(out, data), {"folder": out, **data})


def _load_corpora(
    source: str, overrides: Sequence[str]
) -> tuple[Config, Sequence[Config], Config]:
    """The whole config, its corpora and its tokenizer."""
    if locate_config(source).suffix != ".gin":
        defaults = [
            *("TextDataset.batch_size=1", "TextDataset.sequence_length=1"),
            *("TextDataset.corpus=@Text()", "TextDataset.tokenizer=@SentencePiece()"),
            f"Text.path={json.dumps(source)}",
        ]
        if Path(source).is_file() and Path(source).suffix in (".txt", ".md", ".py"):
            defaults.append("Text.holdout=@HoldoutTail()")
        config = resolve(parse([], [*defaults, *overrides]), "TextDataset")
        return config, [config["corpus"]], config["tokenizer"]
    bindings = parse([source], overrides)
    if any(key.name == "BuildTokenStore" for key in bindings):
        config = resolve(bindings, "BuildTokenStore")
        return config, list(config["sources"].values()), config["tokenizer"]
    config = resolve(bindings, "Experiment")
    for _, node, *_ in walk(config["data"]):
        if isinstance(node, Config) and {"corpus", "tokenizer"} <= node.fields.keys():
            return config, [node["corpus"]], node["tokenizer"]
    raise ConfigError(
        f"{source} has no corpus with a tokenizer: use @TextDataset or"
        " @BuildTokenStore."
    )


def _format_tokenizer(folder: str, data: dict[str, Any]) -> str:
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


def _select(args: argparse.Namespace, root: str) -> Output:
    """Writes the documents that a config selects."""
    config, folder = load_root(args, root), args.names[1]
    with explain_errors(config):
        report = config.build().write(Path(folder))
    lines = []
    for source, count in report["sources"].items():
        share = count["kept"] / max(count["documents"], 1)
        lines.append(
            f"{source}: kept {count['kept']:,} of {count['documents']:,} documents"
            f" ({share:.1%}), {count['bytes'] / 1e6:,.1f} MB"
        )
        for what in ("removed", "changed"):
            reasons = sorted(count[what].items(), key=lambda item: -item[1])
            lines += [f"  {number:>10,} {what}: {reason}" for reason, number in reasons]
    return Output("\n".join([*lines, f"in {folder}"]), report)


@Command("data dedup", "CONFIG.gin OUT", "one of each group of duplicates", **_SELECTS)
def deduplicate(args: argparse.Namespace) -> Output:
    """Removes documents whose text, or a near duplicate of it, occurs earlier.

    The root of the config is @Dedup:

      Dedup.sources = {'web': @web/Text(), 'books': @books/Text()}
      web/Text.path = 'web.jsonl'
      books/Text.path = 'books'
      Dedup.threshold = 0.8         # exact Jaccard similarity of 5-word n-grams

    OUT is a new folder: kept/SOURCE.jsonl, which @Text() reads, has the kept documents
    of each source; removed.jsonl has a line for each removed document, with the reason;
    report.json has their counts.

      lmx data dedup dedup.gin clean/unique
      lmx data dedup dedup.gin clean/unique Dedup.minhash=None     exact duplicates only
    """
    return _select(args, "Dedup")


@Command("data filter", "CONFIG.gin OUT", "the documents that pass filters", **_SELECTS)
def filter_documents(args: argparse.Namespace) -> Output:
    """Filters documents by rules. The root of the config is @FilterDocuments.

      FilterDocuments.sources = {'web': @Text()}
      Text.path = 'web.jsonl'
      FilterDocuments.filters = [@Gopher(), @GopherRepetition(), @FineWeb(), @MaskPII(),
        @QualityClassifier()]
      QualityClassifier.good = @good/Text()
      QualityClassifier.bad = @bad/Text()
      good/Text.path = 'examples/good'
      bad/Text.path = 'examples/bad'

    OUT has the files that `lmx data dedup` writes. `lmx data build` takes the same
    filters, as BuildTokenStore.filters.

      lmx data filter rules.gin clean/good
      lmx data filter rules.gin clean/good Gopher.min_words=100
    """
    return _select(args, "FilterDocuments")


@Command("data decontaminate", "CONFIG.gin OUT", "without evaluation text", **_SELECTS)
def decontaminate(args: argparse.Namespace) -> Output:
    """Removes documents that share 13 consecutive words with an evaluation set.

    The root of the config is @Decontaminate:

      Decontaminate.sources = {'web': @web/Text()}
      Decontaminate.against = {'quiz': @quiz/Text()}
      web/Text.path = 'web.jsonl'
      quiz/Text.path = 'quiz.jsonl'

    OUT has the files that `lmx data dedup` writes.

      lmx data decontaminate tests.gin clean/fair
      lmx data decontaminate tests.gin clean/fair Decontaminate.ngram_size=8
    """
    return _select(args, "Decontaminate")
