"""`lmx data dedup | filter | decontaminate`: selects the documents to train on."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmx.cli.command import Command, Output
from lmx.cli.load import load_root
from lmx.config.value import explain_errors

_FOLDER = """
OUT is a new folder: kept/SOURCE.jsonl, which @Text() reads, has the kept documents of
each source; removed.jsonl has a line for each removed document, with the reason;
report.json has their counts. The inputs are not changed.
"""
_DEDUP = """\
Removes documents whose text, or a near duplicate of it, occurs earlier. The root of the
config is @Dedup:

  Dedup.sources = {'web': @web/Text(), 'books': @books/Text()}
  web/Text.path = 'web.jsonl'
  books/Text.path = 'books'
  Dedup.threshold = 0.8         # exact Jaccard similarity of 5-word n-grams

  lmx data dedup dedup.gin clean/unique
  lmx data dedup dedup.gin clean/unique Dedup.minhash=None     exact duplicates only
"""
_FILTER = """\
Filters documents by rules. The root of the config is @FilterDocuments:

  FilterDocuments.sources = {'web': @Text()}
  Text.path = 'web.jsonl'
  FilterDocuments.filters = [@Gopher(), @GopherRepetition(), @FineWeb(), @MaskPII(),
    @QualityClassifier()]
  QualityClassifier.good = @good/Text()
  QualityClassifier.bad = @bad/Text()
  good/Text.path = 'examples/good'
  bad/Text.path = 'examples/bad'

`lmx data build` takes the same filters, as BuildTokenStore.filters.

  lmx data filter rules.gin clean/good
  lmx data filter rules.gin clean/good Gopher.min_words=100
"""
_DECONTAMINATE = """\
Removes documents that share 13 consecutive words with an evaluation set. The root of
the config is @Decontaminate:

  Decontaminate.sources = {'web': @web/Text()}
  Decontaminate.against = {'quiz': @quiz/Text()}
  web/Text.path = 'web.jsonl'
  quiz/Text.path = 'quiz.jsonl'

  lmx data decontaminate tests.gin clean/fair
  lmx data decontaminate tests.gin clean/fair Decontaminate.ngram_size=8
"""


def _dedup(args: argparse.Namespace) -> Output:
    from lmx.data.curate.dedup import Dedup

    return _write(args, Dedup)


def _filter(args: argparse.Namespace) -> Output:
    from lmx.data.curate.filter import FilterDocuments

    return _write(args, FilterDocuments)


def _decontaminate(args: argparse.Namespace) -> Output:
    from lmx.data.curate.decontaminate import Decontaminate

    return _write(args, Decontaminate)


def _write(args: argparse.Namespace, root: Callable[..., Any]) -> Output:
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


COMMANDS = tuple(
    Command(
        f"data {name}",
        "CONFIG.gin OUT",
        summary,
        about + _FOLDER,
        run,
        takes_overrides=True,
        hint="nothing was written to {1}",
    )
    for name, summary, about, run in (
        ("dedup", "one of each group of duplicates", _DEDUP, _dedup),
        ("filter", "the documents that pass filters", _FILTER, _filter),
        (
            "decontaminate",
            "the documents that share no text with evaluations",
            _DECONTAMINATE,
            _decontaminate,
        ),
    )
)
