"""The filters that FineWeb adds to those of Gopher and C4.

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
    """Keeps text whose lines are sentences, unlike menus and lists.

    Attributes:
        min_ended_lines: fraction of lines that end like a sentence.
        max_duplicate_chars: fraction of characters in duplicate lines.
        max_short_lines: fraction of lines with fewer than `short_line_chars`.
    """

    min_ended_lines: float = 0.12
    max_duplicate_chars: float = 0.1
    max_short_lines: float = 0.67
    short_line_chars: int = 30

    def __call__(self, document: Document) -> Document | str:
        lines = [line for line in document.text.splitlines() if line.strip()]
        if not lines:
            return "FineWeb: no line"
        count, chars = len(lines), sum(map(len, lines))
        ended = sum(line.rstrip().endswith(SENTENCE_ENDS) for line in lines)
        if ended / count <= self.min_ended_lines:
            return "FineWeb: few lines that end as a sentence"
        duplicates = sum(map(len, find_duplicates(lines)))
        if duplicates / chars >= self.max_duplicate_chars:
            return "FineWeb: characters in duplicate lines"
        short = sum(len(line) < self.short_line_chars for line in lines)
        return (
            "FineWeb: short lines"
            if short / count >= self.max_short_lines
            else document
        )
