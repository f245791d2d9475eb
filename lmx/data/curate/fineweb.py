"""The rules that FineWeb adds to Gopher's and C4's.

Penedo et al. 2024, arXiv:2406.17557, section 3.6.
"""

from dataclasses import dataclass

from lmx.config.registry import configurable
from lmx.data.corpus.corpus import Document
from lmx.data.curate.filter import Filter
from lmx.data.curate.gopher import find_duplicates

SENTENCE_ENDS = (".", "!", "?", "…", '"', "'", "”", "’", "。", "！", "？")


@configurable
@dataclass(frozen=True, kw_only=True)
class FineWeb(Filter):
    """Text in lines that are sentences, rather than menus and lists.

    Attributes:
        ended: of all lines, those that end as a sentence does: no fewer.
        duplicates: of all characters, those in lines that stood before: no more.
        short: of all lines, those of fewer than `width` characters: no more.
    """

    min_ended_lines: float = 0.12
    max_duplicate_chars: float = 0.1
    max_short_lines: float = 0.67
    short_line_chars: int = 30

    def __call__(self, document: Document) -> Document | str:
        lines = [line for line in document.text.splitlines() if line.strip()]
        if not lines:
            return "FineWeb: no line"
        ended = sum(line.rstrip().endswith(SENTENCE_ENDS) for line in lines) / len(
            lines
        )
        if ended <= self.min_ended_lines:
            return "FineWeb: few lines that end as a sentence"
        characters = sum(map(len, find_duplicates(lines))) / sum(map(len, lines))
        if characters >= self.max_duplicate_chars:
            return "FineWeb: characters in duplicate lines"
        if (
            sum(len(line) < self.short_line_chars for line in lines) / len(lines)
            >= self.max_short_lines
        ):
            return "FineWeb: short lines"
        return document
