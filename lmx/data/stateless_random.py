"""Chance without state: numbers and permutations as functions of a key.

Written out rather than left to a library's generator, whose stream may change with its
version: a run must see the same data wherever and whenever it is resumed.
"""

import enum
import math

import numpy as np
from jaxtyping import Int64, UInt64

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, as in splitmix64
U64_RANGE = 2**64
ROUNDS = 8  # even, so that the two halves end where they began; 4 is the proven least


@enum.unique
class RandomStream(enum.IntEnum):
    """What chance is drawn for: two uses of one seed do not meet."""

    SHUFFLE = 1
    WINDOW = 2
    OFFSET = 3
    PAUSE = 4
    COMPONENT = 5
    POSITION = 6
    RECALL = 7
    EQUATION = 8
    MARKOV = 9
    GRAMMAR = 10
    NOISE = 11
    TABLE = 12  # what a made language is, as its own number decides
    REPEAT = 13
    COPY = 14


def hash_u64(*words: int | np.ndarray) -> UInt64[np.ndarray, "..."]:
    """64 random bits for each combination of the words, which broadcast together.

    The finaliser of splitmix64 between words: Steele et al. 2014,
    doi:10.1145/2660193.2660195, with the constants of Stafford's variant 13.
    """
    state = np.zeros(1, np.uint64)
    for word in words:
        state = _mix((state + GOLDEN) ^ _to_u64(word))
    return state


def randint(bound: int, *words: int | np.ndarray) -> Int64[np.ndarray, "..."]:
    """A number of [0, bound) for each combination of the words, every one as likely."""
    drawn = hash_u64(*words)
    fair = np.uint64(
        U64_RANGE - 1 - U64_RANGE % bound
    )  # beyond it some numbers come once more
    while (again := drawn > fair).any():
        drawn = np.where(again, _mix(drawn + GOLDEN), drawn)
    return (drawn % np.uint64(bound)).astype(np.int64)


def permute(
    index: Int64[np.ndarray, " M"], size: int, key: UInt64[np.ndarray, " M"]
) -> Int64[np.ndarray, " M"]:
    """Where each index of [0, size) goes in the permutation that its key chooses.

    A Feistel network over a grid that is hardly larger than `size`, repeated for what
    falls outside. Black and Rogaway 2002, doi:10.1007/3-540-45760-7_9.
    """
    width = math.isqrt(size - 1) + 1
    sides = (width, -(-size // width))
    moved = _feistel(index.astype(np.uint64), sides, key)
    while (outside := moved >= size).any():
        moved[outside] = _feistel(moved[outside], sides, key[outside])
    return moved.astype(np.int64)


def _feistel(
    cell: UInt64[np.ndarray, " M"], sides: tuple[int, int], key: np.ndarray
) -> UInt64[np.ndarray, " M"]:
    """Each cell of the grid, moved along one side by a hash of the other, in turns."""
    this, other = map(np.uint64, sides)
    a, b = cell % this, cell // this
    for _ in range(ROUNDS):
        key = key + GOLDEN
        a, b = b, (a + _mix(key ^ b) % this) % this
        this, other = other, this
    return a + b * this


def _mix(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """A bijection of 64 bits in which every bit in reaches every bit out."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _to_u64(word: int | np.ndarray) -> UInt64[np.ndarray, "..."]:
    """The word as an array of 64 bits, negative numbers in two's complement."""
    if isinstance(word, np.ndarray):
        return word.astype(np.uint64)
    return np.array([int(word) % U64_RANGE], np.uint64)
