"""The rules by which Gopher's authors told prose from what else the web has.

Rae et al. 2021, arXiv:2112.11446, appendix A.1.
"""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lmx.config.names import configurable
from lmx.data.corpora.corpus import Document
from lmx.data.store.filter import Filter

STOP = frozenset("the be to of and that have with".split())
BULLET = re.compile(r"\s*[•‣◦⁃∙*-]")
ELLIPSIS = ("...", "…")


@configurable
@dataclass(frozen=True, kw_only=True)
class Gopher(Filter):
    """Prose in English, of some length: each bound of its table is a field.

    Attributes:
        symbols: hash signs, or ellipses, for each word.
        bullets, ellipses: of all lines, those that begin, or end, so.
        alphabetic: of all words, those with a letter.
        stop_words: different ones of eight that English cannot do without.
    """

    least_words: int = 50
    most_words: int = 100_000
    shortest: float = 3.0  # characters of a word, on average
    longest: float = 10.0
    symbols: float = 0.1
    bullets: float = 0.9
    ellipses: float = 0.3
    alphabetic: float = 0.8
    stop_words: int = 2

    def __call__(self, document: Document) -> Document | str:
        text = document.text
        words, lines = text.split(), text.splitlines() or [""]
        count = max(len(words), 1)
        length = sum(map(len, words)) / count
        bulleted = sum(bool(BULLET.match(line)) for line in lines)
        trailing = sum(line.rstrip().endswith(ELLIPSIS) for line in lines)
        dots = sum(map(text.count, ELLIPSIS))
        lettered = sum(any(map(str.isalpha, word)) for word in words)
        broken = {
            f"fewer than {self.least_words} words": len(words) < self.least_words,
            f"more than {self.most_words} words": len(words) > self.most_words,
            "short words": length < self.shortest,
            "long words": length > self.longest,
            "many hash signs": text.count("#") / count > self.symbols,
            "many ellipses": dots / count > self.symbols,
            "lines that begin with a bullet": bulleted / len(lines) > self.bullets,
            "lines that end with an ellipsis": trailing / len(lines) > self.ellipses,
            "few words with a letter": lettered / count < self.alphabetic,
            "few stop words": len(STOP & set(words)) < self.stop_words,
        }
        return next(
            (f"Gopher: {why}" for why, is_so in broken.items() if is_so), document
        )


@configurable
@dataclass(frozen=True, kw_only=True)
class Repetition(Filter):
    """What says the same again and again: lines, paragraphs, runs of words.

    A line, or a run of words, is a duplicate where it is not the first of its kind;
    shares of characters are of all characters of the text. Table A1.

    Attributes:
        lines, paragraphs: the share of them that may be duplicates.
        line_characters, paragraph_characters: and of characters within them.
        top: the share of characters within the most frequent run of 2, 3 and 4 words.
        runs: and within duplicate runs of 5, 6, ... 10 words.
    """

    lines: float = 0.3
    paragraphs: float = 0.3
    line_characters: float = 0.2
    paragraph_characters: float = 0.2
    top: tuple[float, ...] = (0.20, 0.18, 0.16)
    runs: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)

    TOP: ClassVar[int] = 2  # words of the shortest run whose most frequent is counted
    RUNS: ClassVar[int] = 5

    def __call__(self, document: Document) -> Document | str:
        why = self._parts(document.text) or self._words(document.text)
        return f"Repetition: {why}" if why else document

    def _parts(self, text: str) -> str | None:
        """What is repeated of lines and paragraphs."""
        for name, mark, share, characters in (
            ("lines", "\n", self.lines, self.line_characters),
            ("paragraphs", "\n\n", self.paragraphs, self.paragraph_characters),
        ):
            parts = [part for part in re.split(f"{mark}+", text.strip()) if part]
            again = repeated(parts)
            if len(again) > share * len(parts):
                return f"duplicate {name}"
            if sum(map(len, again)) > characters * len(text):
                return f"characters in duplicate {name}"
        return None

    def _words(self, text: str) -> str | None:
        """What is repeated of runs of words."""
        words = text.split()
        for size, share in enumerate(self.top, self.TOP):
            runs = Counter(zip(*(words[i:] for i in range(size)), strict=False))
            run, count = max(runs.items(), key=lambda each: each[1], default=((), 0))
            if count > 1 and count * len("".join(run)) > share * len(text):
                return f"characters in one run of {size} words"
        for size, share in enumerate(self.runs, self.RUNS):
            if within_repeated(words, size) > share * len(text):
                return f"characters in duplicate runs of {size} words"
        return None


def repeated(parts: Sequence[str]) -> list[str]:
    """Those that stood before, as often as they stand again."""
    seen: set[Hashable] = set()
    return [part for part in parts if part in seen or seen.add(part)]


def within_repeated(words: Sequence[str], size: int) -> int:
    """Characters of words within runs that stood before, each word counted once."""
    seen: set[Hashable] = set()
    total = end = 0  # the words before `end` are counted, or need not be
    for begin in range(len(words) - size + 1):
        run = tuple(words[begin : begin + size])
        if run in seen:
            total += sum(map(len, words[max(begin, end) : begin + size]))
            end = begin + size
        seen.add(run)
    return total
