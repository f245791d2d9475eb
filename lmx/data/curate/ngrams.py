"""Texts as runs of words, and runs as numbers, to tell what texts have in common."""

import functools
import hashlib
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64

from lmx.data.stateless_random import hash_u64

WORD = re.compile(r"\w+")
CACHED_WORDS = 2**20  # different words whose numbers are remembered


def split_words(text: str) -> list[str]:
    """The words of a text, in lower case; punctuation only parts them."""
    return WORD.findall(text.lower())


def hash_words(found: Sequence[str]) -> UInt64[np.ndarray, " _"]:
    """64 bits for each word, which two words have in common by accident only."""
    return np.fromiter(map(_hash_word, found), np.uint64, len(found))


@functools.lru_cache(CACHED_WORDS)
def _hash_word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


def hash_ngrams(
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
    return hash_u64(*parts), counts.cumsum()


def hash_ngram_set(text: str, size: int) -> UInt64[np.ndarray, " _"]:
    """The runs of one text, sorted, each once."""
    number = hash_words(split_words(text))
    return np.unique(hash_ngrams(number, np.array([len(number)]), size)[0])


def jaccard_index(
    one: UInt64[np.ndarray, " _"], other: UInt64[np.ndarray, " _"]
) -> float:
    """Jaccard's index of two sets, each sorted: what they share of all they have."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(len(one) + len(other) - shared, 1)
