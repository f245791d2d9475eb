"""Quality and repetition filters of Gopher.

Rae et al. 2021, arXiv:2112.11446, appendix A.1.
"""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from lmx.config.registry import configurable
from lmx.data.corpus.corpus import Document
from lmx.data.curate.filter import Filter

STOP_WORDS = frozenset("the be to of and that have with".split())
BULLET = re.compile(r"\s*[•‣◦⁃∙*-]")
ELLIPSIS = ("...", "…")
MIN_TOP_NGRAM, MIN_DUPLICATE_NGRAM = 2, 5  # words


@configurable
@dataclass(frozen=True, kw_only=True)
class Gopher(Filter):
    """Keeps English prose of sufficient length.

    Attributes:
        max_symbol_ratio: hash signs, or ellipses, per word.
        max_bullet_lines, max_ellipsis_lines: fraction of lines that begin with a
            bullet, or end with an ellipsis.
        min_alphabetic_words: fraction of words with a letter.
        min_stop_words: different words of eight frequent English words.
    """

    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3.0  # characters, on average
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
        bullets = sum(bool(BULLET.match(line)) for line in lines) / len(lines)
        trailing = sum(line.rstrip().endswith(ELLIPSIS) for line in lines) / len(lines)
        ellipses = sum(map(text.count, ELLIPSIS)) / count
        alphabetic = sum(any(map(str.isalpha, word)) for word in words) / count
        violations = {
            f"fewer than {self.min_words} words": len(words) < self.min_words,
            f"more than {self.max_words} words": len(words) > self.max_words,
            "short words": length < self.min_word_length,
            "long words": length > self.max_word_length,
            "many hash signs": text.count("#") / count > self.max_symbol_ratio,
            "many ellipses": ellipses > self.max_symbol_ratio,
            "lines that begin with a bullet": bullets > self.max_bullet_lines,
            "lines that end with an ellipsis": trailing > self.max_ellipsis_lines,
            "few words with a letter": alphabetic < self.min_alphabetic_words,
            "few stop words": len(STOP_WORDS & set(words)) < self.min_stop_words,
        }
        reasons = (f"Gopher: {reason}" for reason, is_so in violations.items() if is_so)
        return next(reasons, document)


@configurable
@dataclass(frozen=True, kw_only=True)
class GopherRepetition(Filter):
    """Removes repetitive text: repeated lines, paragraphs and word n-grams.

    A line or n-gram is a duplicate if it is not its first occurrence; fractions of
    characters are of all characters of the text. Table A1.

    Attributes:
        max_duplicate_lines, max_duplicate_paragraphs: fraction that are duplicates.
        max_duplicate_line_chars, max_duplicate_paragraph_chars: the same in characters.
        max_top_ngram_chars: fraction of characters in the most frequent 2-, 3- and
            4-gram.
        max_duplicate_ngram_chars: fraction in duplicate 5-, 6-, ... and 10-grams.
    """

    max_duplicate_lines: float = 0.3
    max_duplicate_paragraphs: float = 0.3
    max_duplicate_line_chars: float = 0.2
    max_duplicate_paragraph_chars: float = 0.2
    max_top_ngram_chars: tuple[float, ...] = (0.20, 0.18, 0.16)
    max_duplicate_ngram_chars: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)

    def __call__(self, document: Document) -> Document | str:
        reason = self._check_lines(document.text) or self._check_ngrams(document.text)
        return f"GopherRepetition: {reason}" if reason else document

    def _check_lines(self, text: str) -> str | None:
        line_limits = self.max_duplicate_lines, self.max_duplicate_line_chars
        limits = self.max_duplicate_paragraphs, self.max_duplicate_paragraph_chars
        for name, separator, (max_parts, max_chars) in (
            ("lines", "\n+", line_limits),
            ("paragraphs", "\n\n+", limits),
        ):
            parts = [part for part in re.split(separator, text.strip()) if part]
            duplicates = find_duplicates(parts)
            if len(duplicates) > max_parts * len(parts):
                return f"duplicate {name}"
            if sum(map(len, duplicates)) > max_chars * len(text):
                return f"characters in duplicate {name}"
        return None

    def _check_ngrams(self, text: str) -> str | None:
        words = text.split()
        for size, limit in enumerate(self.max_top_ngram_chars, MIN_TOP_NGRAM):
            ngrams = Counter(zip(*(words[i:] for i in range(size)), strict=False))
            top, count = max(ngrams.items(), key=lambda item: item[1], default=((), 0))
            if count > 1 and count * len("".join(top)) > limit * len(text):
                return f"characters in one {size}-gram"
        for size, limit in enumerate(
            self.max_duplicate_ngram_chars, MIN_DUPLICATE_NGRAM
        ):
            if count_repeated_chars(words, size) > limit * len(text):
                return f"characters in duplicate {size}-grams"
        return None


def find_duplicates(parts: Sequence[str]) -> list[str]:
    """Returns the parts that are not the first of their kind."""
    seen: set[Hashable] = set()
    return [part for part in parts if part in seen or seen.add(part)]


def count_repeated_chars(words: Sequence[str], size: int) -> int:
    """Counts the characters of words in repeated n-grams, each word once."""
    seen: set[Hashable] = set()
    total = end = 0  # words before `end` are counted
    for begin in range(len(words) - size + 1):
        ngram = tuple(words[begin : begin + size])
        if ngram in seen:
            total += sum(map(len, words[max(begin, end) : begin + size]))
            end = begin + size
        seen.add(ngram)
    return total
