"""`lmx data dedup | filter | decontaminate`: which documents to learn from."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from lmx.cli.config import add_import, import_modules
from lmx.config.registry import ConfigError

EXAMPLES = """\
  lmx data dedup pages/dedup.gin clean/once        the first of those that are alike
  lmx data filter pages/rules.gin clean/good       what rules leave
  lmx data decontaminate pages/asked.gin clean/fair    what shares no words with tests
"""
_FOLDER = """\

OUT is a new folder: kept/SOURCE.jsonl, which @Text() reads, with what stays of each
source; removed.jsonl, a line for each document that goes, with the reason; report.json,
their counts. What is read stays as it is.
"""
_ABOUT = {
    "dedup": """\
Removes documents whose text, or nearly whose text, stood before. The page's root is
@Dedup:

  Dedup.sources = {'web': @web/Text(), 'books': @books/Text()}
  web/Text.path = 'web.jsonl'
  books/Text.path = 'books'
  Dedup.threshold = 0.8             # Jaccard's index of runs of 5 words, taken exactly

  lmx data dedup page.gin clean/once
  lmx data dedup page.gin clean/once Dedup.minhash=None     equal texts only
""",
    "filter": """\
Passes documents through rules. The page's root is @FilterDocuments:

  FilterDocuments.sources = {'web': @Text()}
  Text.path = 'web.jsonl'
  FilterDocuments.filters = [@Gopher(), @GopherRepetition(), @FineWeb(), @MaskPII(), @QualityClassifier()]
  QualityClassifier.good = @good/Text()
  QualityClassifier.bad = @bad/Text()
  good/Text.path = 'examples/good'
  bad/Text.path = 'examples/bad'

The same rules serve `lmx data build`, as BuildTokenStore.filters.

  lmx data filter page.gin clean/good
  lmx data filter page.gin clean/good Gopher.min_words=100
""",
    "decontaminate": """\
Removes documents that share a run of 13 words with an evaluation. The page's root is
@Decontaminate:

  Decontaminate.sources = {'web': @web/Text()}
  Decontaminate.against = {'quiz': @quiz/Text()}
  web/Text.path = 'web.jsonl'
  quiz/Text.path = 'quiz.jsonl'

  lmx data decontaminate page.gin clean/fair
  lmx data decontaminate page.gin clean/fair Decontaminate.ngram_size=8
""",
}
_HELP = {
    "dedup": "the first of those that are alike",
    "filter": "what rules leave",
    "decontaminate": "what shares no words with evaluations",
}


def add(parsers: Any) -> None:
    """Adds the verbs to what `ArgumentParser.add_subparsers` returned."""
    for verb, about in _ABOUT.items():
        parser = parsers.add_parser(
            verb,
            help=_HELP[verb],
            description=about + _FOLDER,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage=f"lmx data {verb} PAGE.gin OUT [Name.parameter=value ...] [options]",
        )
        parser.set_defaults(run=partial(run, verb))
        parser.add_argument("words", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
        parser.add_argument("--json", action="store_true", help="print the report")
        add_import(parser)


def run(verb: str, args: argparse.Namespace) -> int:
    """Sifts. Returns the exit status."""
    overrides = [word for word in args.words if "=" in word]
    names = [word for word in args.words if "=" not in word]
    try:
        if len(names) != 2:
            raise ConfigError(
                f"got {' '.join(names)!r}: write lmx data {verb} PAGE.gin OUT"
            )
        report = _sifted(verb, names[0], Path(names[1]), overrides, args.imports)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; nothing was written to {names[1]}", file=sys.stderr)
        return 130
    print(json.dumps(report, indent=1) if args.json else _text(names[1], report))
    return 0


def _sifted(
    verb: str, page: str, folder: Path, overrides: list[str], imports: list[str]
) -> dict[str, Any]:
    """Does what the page says. Returns the report."""
    from lmx.config.resolve import load
    from lmx.config.value import explain_errors
    from lmx.data.curate.decontaminate import Decontaminate
    from lmx.data.curate.dedup import Dedup
    from lmx.data.curate.filter import FilterDocuments

    roots = {"dedup": Dedup, "filter": FilterDocuments, "decontaminate": Decontaminate}
    import_modules(imports)
    config = load([page], overrides, root=roots[verb])
    with explain_errors(config):
        return config.build().write(folder)


def _text(folder: str, report: dict[str, Any]) -> str:
    """What stayed, what went and why."""
    lines = []
    for source, count in report["sources"].items():
        share = count["kept"] / max(count["documents"], 1)
        lines.append(
            f"{source}: {count['kept']:,} of {count['documents']:,} documents stay"
            f" ({share:.1%}), {count['bytes'] / 1e6:,.1f} MB"
        )
        for said in ("removed", "changed"):
            most = sorted(count[said].items(), key=lambda each: -each[1])
            lines += [f"  {number:>10,} {said}: {why}" for why, number in most]
    return "\n".join([*lines, f"in {folder}"])
