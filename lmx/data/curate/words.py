"""Texts as runs of words, and runs as numbers, to tell what texts have in common."""

import functools
import hashlib
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64

from lmx.data.keyed import hashed

WORD = re.compile(r"\w+")
KNOWN = 2**20  # different words whose numbers are remembered


def words(text: str) -> list[str]:
    """The words of a text, in lower case; punctuation only parts them."""
    return WORD.findall(text.lower())


def numbers(found: Sequence[str]) -> UInt64[np.ndarray, " _"]:
    """64 bits for each word, which two words have in common by accident only."""
    return np.fromiter(map(_number, found), np.uint64, len(found))


@functools.lru_cache(KNOWN)
def _number(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


def runs(
    number: UInt64[np.ndarray, " _"], ends: Int64[np.ndarray, " texts"], size: int
) -> tuple[UInt64[np.ndarray, " runs"], Int64[np.ndarray, " texts"]]:
    """64 bits for every `size` words that follow one another in a text, and where the
    runs of each text end.

    `number` is of the words of all texts, of which each ends where `ends` says. A text
    of fewer words is one run; one of none has none.
    """
    lengths = np.diff(ends, prepend=0)
    counts = np.where(lengths == 0, 0, np.maximum(lengths - size + 1, 1))
    last = np.repeat(ends, counts)
    skipped = (lengths - counts).cumsum() - (lengths - counts)  # words that begin none
    first = np.arange(counts.sum()) + np.repeat(skipped, counts)
    nothing = np.uint64(0)
    parts = []
    for step in range(size):
        at = np.minimum(first + step, max(len(number) - 1, 0))
        parts.append(np.where(first + step < last, number[at], nothing))
    return hashed(*parts), counts.cumsum()


def runs_of(text: str, size: int) -> UInt64[np.ndarray, " _"]:
    """The runs of one text, sorted, each once."""
    number = numbers(words(text))
    return np.unique(runs(number, np.array([len(number)]), size)[0])


def alike(one: UInt64[np.ndarray, " _"], other: UInt64[np.ndarray, " _"]) -> float:
    """Jaccard's index of two sets, each sorted: what they share of all they have."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(len(one) + len(other) - shared, 1)
