"""The rules that FineWeb adds to Gopher's and C4's.

Penedo et al. 2024, arXiv:2406.17557, section 3.6.
"""

from dataclasses import dataclass

from lmx.config.names import configurable
from lmx.data.corpora.corpus import Document
from lmx.data.curate.gopher import repeated
from lmx.data.store.filter import Filter

ENDS = (".", "!", "?", "…", '"', "'", "”", "’", "。", "！", "？")


@configurable
@dataclass(frozen=True, kw_only=True)
class FineWeb(Filter):
    """Text in lines that are sentences, rather than menus and lists.

    Attributes:
        ended: of all lines, those that end as a sentence does: no fewer.
        duplicates: of all characters, those in lines that stood before: no more.
        short: of all lines, those of fewer than `width` characters: no more.
    """

    ended: float = 0.12
    duplicates: float = 0.1
    short: float = 0.67
    width: int = 30

    def __call__(self, document: Document) -> Document | str:
        lines = [line for line in document.text.splitlines() if line.strip()]
        if not lines:
            return "FineWeb: no line"
        ended = sum(line.rstrip().endswith(ENDS) for line in lines) / len(lines)
        if ended <= self.ended:
            return "FineWeb: few lines that end as a sentence"
        characters = sum(map(len, repeated(lines))) / sum(map(len, lines))
        if characters >= self.duplicates:
            return "FineWeb: characters in duplicate lines"
        if sum(len(line) < self.width for line in lines) / len(lines) >= self.short:
            return "FineWeb: short lines"
        return document
