"""`lmx data`: from text to tokens that can be read, by groups of verbs."""

import argparse
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from lmx.cli.config import Words
from lmx.cli.data import build, curate, inspect, tokenizer

_ABOUT = """\
Prepares text for training. Nothing that is read is ever changed: what a verb makes has
a place of its own.
"""
_MODULES: Sequence[ModuleType] = (build, inspect, tokenizer, curate)


def add(parsers: Any) -> None:
    """Adds the verb `data` to what `ArgumentParser.add_subparsers` returned."""
    parser = parsers.add_parser(
        "data",
        help="from text to tokens that can be read",
        description=_ABOUT + "\n" + "".join(module.EXAMPLES for module in _MODULES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=Words)
    for module in _MODULES:
        module.add(verbs)
