"""Word n-grams of texts as hashes, to compare texts."""

import functools
import hashlib
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64

from lmx.data.stateless_random import hash_u64

WORD = re.compile(r"\w+")
CACHED_WORDS = 2**20


def split_words(text: str) -> list[str]:
    """Returns the words of a text in lower case, without punctuation."""
    return WORD.findall(text.lower())


def hash_words(words: Sequence[str]) -> UInt64[np.ndarray, " _"]:
    """Returns 64 bits for each word."""
    return np.fromiter(map(_hash_word, words), np.uint64, len(words))


@functools.lru_cache(CACHED_WORDS)
def _hash_word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


def hash_ngrams(
    hashes: UInt64[np.ndarray, " _"], ends: Int64[np.ndarray, " texts"], size: int
) -> tuple[UInt64[np.ndarray, " ngrams"], Int64[np.ndarray, " texts"]]:
    """Returns 64 bits for each n-gram of each text, and where those of each text end.

    `hashes` are of the words of all texts, and `ends` is where the words of each text
    end. A text of fewer words is one n-gram; a text without words has none.
    """
    lengths = np.diff(ends, prepend=0)
    counts = np.where(lengths == 0, 0, np.maximum(lengths - size + 1, 1))
    last = np.repeat(ends, counts)
    skipped = (lengths - counts).cumsum() - (lengths - counts)  # words that begin none
    first = np.arange(counts.sum()) + np.repeat(skipped, counts)
    columns = []
    for offset in range(size):
        at = np.minimum(first + offset, max(len(hashes) - 1, 0))
        columns.append(np.where(first + offset < last, hashes[at], np.uint64(0)))
    return hash_u64(*columns), counts.cumsum()


def hash_text(words: Sequence[str], size: int) -> UInt64[np.ndarray, " _"]:
    """Returns the n-grams of the words of one text, in order."""
    hashes = hash_words(words)
    return hash_ngrams(hashes, np.array([len(hashes)]), size)[0]


def hash_ngram_set(text: str, size: int) -> UInt64[np.ndarray, " _"]:
    """Returns the distinct n-grams of one text, sorted."""
    return np.unique(hash_text(split_words(text), size))


def jaccard_index(
    one: UInt64[np.ndarray, " _"], other: UInt64[np.ndarray, " _"]
) -> float:
    """Returns intersection over union of two sorted sets."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(len(one) + len(other) - shared, 1)
