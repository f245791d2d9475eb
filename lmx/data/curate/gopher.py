"""The rules by which Gopher's authors told prose from what else the web has.

Rae et al. 2021, arXiv:2112.11446, appendix A.1.
"""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lmx.config.registry import configurable
from lmx.data.corpus.corpus import Document
from lmx.data.curate.filter import Filter

STOP_WORDS = frozenset("the be to of and that have with".split())
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

    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3.0  # characters of a word, on average
    max_word_length: float = 10.0
    max_symbol_ratio: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic_words: float = 0.8
    min_stop_words: int = 2

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
            f"fewer than {self.min_words} words": len(words) < self.min_words,
            f"more than {self.max_words} words": len(words) > self.max_words,
            "short words": length < self.min_word_length,
            "long words": length > self.max_word_length,
            "many hash signs": text.count("#") / count > self.max_symbol_ratio,
            "many ellipses": dots / count > self.max_symbol_ratio,
            "lines that begin with a bullet": bulleted / len(lines)
            > self.max_bullet_lines,
            "lines that end with an ellipsis": trailing / len(lines)
            > self.max_ellipsis_lines,
            "few words with a letter": lettered / count < self.min_alphabetic_words,
            "few stop words": len(STOP_WORDS & set(words)) < self.min_stop_words,
        }
        return next(
            (f"Gopher:{why}" for why, is_so in broken.items() if is_so), document
        )


@configurable
@dataclass(frozen=True, kw_only=True)
class GopherRepetition(Filter):
    """What says the same again and again: lines, paragraphs, runs of words.

    A line, or a run of words, is a duplicate where it is not the first of its kind;
    shares of characters are of all characters of the text. Table A1.

    Attributes:
        lines, paragraphs: the share of them that may be duplicates.
        line_characters, paragraph_characters: and of characters within them.
        top: the share of characters within the most frequent run of 2, 3 and 4 words.
        runs: and within duplicate runs of 5, 6, ... 10 words.
    """

    max_duplicate_lines: float = 0.3
    max_duplicate_paragraphs: float = 0.3
    max_duplicate_line_chars: float = 0.2
    max_duplicate_paragraph_chars: float = 0.2
    max_top_ngram_chars: tuple[float, ...] = (0.20, 0.18, 0.16)
    max_duplicate_ngram_chars: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)

    TOP: ClassVar[int] = 2  # words of the shortest run whose most frequent is counted
    RUNS: ClassVar[int] = 5

    def __call__(self, document: Document) -> Document | str:
        why = self._check_lines(document.text) or self._check_ngrams(document.text)
        return f"GopherRepetition:{why}" if why else document

    def _check_lines(self, text: str) -> str | None:
        """What is repeated of lines and paragraphs."""
        for name, mark, share, characters in (
            ("lines", "\n", self.max_duplicate_lines, self.max_duplicate_line_chars),
            (
                "paragraphs",
                "\n\n",
                self.max_duplicate_paragraphs,
                self.max_duplicate_paragraph_chars,
            ),
        ):
            parts = [part for part in re.split(f"{mark}+", text.strip()) if part]
            again = find_duplicates(parts)
            if len(again) > share * len(parts):
                return f"duplicate {name}"
            if sum(map(len, again)) > characters * len(text):
                return f"characters in duplicate {name}"
        return None

    def _check_ngrams(self, text: str) -> str | None:
        """What is repeated of runs of words."""
        words = text.split()
        for size, share in enumerate(self.max_top_ngram_chars, self.TOP):
            runs = Counter(zip(*(words[i:] for i in range(size)), strict=False))
            run, count = max(runs.items(), key=lambda each: each[1], default=((), 0))
            if count > 1 and count * len("".join(run)) > share * len(text):
                return f"characters in one run of {size} words"
        for size, share in enumerate(self.max_duplicate_ngram_chars, self.RUNS):
            if count_repeated_chars(words, size) > share * len(text):
                return f"characters in duplicate runs of {size} words"
        return None


def find_duplicates(parts: Sequence[str]) -> list[str]:
    """Those that stood before, as often as they stand again."""
    seen: set[Hashable] = set()
    return [part for part in parts if part in seen or seen.add(part)]


def count_repeated_chars(words: Sequence[str], size: int) -> int:
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
