"""Stateless random numbers and permutations, as functions of a key.

This is a separate implementation because the streams of NumPy's generators may change
with its version: a resumed run must see the same data on every machine.
"""

import enum
import math

import numpy as np
from jaxtyping import Int64, UInt64

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, as in splitmix64
U64_RANGE = 2**64
ROUNDS = 8  # even, so that both halves return to their sides; 4 is the proven minimum


# What random numbers are used for: each use of a seed has its own stream. TABLE is for
# the tables of a synthetic language, from its language_seed.
RandomStream = enum.IntEnum(
    "RandomStream",
    "SHUFFLE WINDOW OFFSET PAUSE COMPONENT POSITION RECALL EQUATION MARKOV GRAMMAR"
    " NOISE TABLE REPEAT COPY",
)


def hash_u64(*words: int | np.ndarray) -> UInt64[np.ndarray, "..."]:
    """64 random bits for each combination of the words (integers), which broadcast.

    Applies the finalizer of splitmix64 after each word: Steele et al. 2014,
    doi:10.1145/2660193.2660195, with the constants of Stafford's variant 13.
    """
    state = np.zeros(1, np.uint64)
    for word in words:
        state = _mix((state + GOLDEN) ^ _to_u64(word))
    return state


def randint(bound: int, *words: int | np.ndarray) -> Int64[np.ndarray, "..."]:
    """A uniform integer in [0, bound) for each combination of the words."""
    drawn = hash_u64(*words)
    limit = np.uint64(U64_RANGE - 1 - U64_RANGE % bound)  # above it, modulo is biased
    while (rejected := drawn > limit).any():
        drawn = np.where(rejected, _mix(drawn + GOLDEN), drawn)
    return (drawn % np.uint64(bound)).astype(np.int64)


def permute(
    index: Int64[np.ndarray, " M"], size: int, key: UInt64[np.ndarray, " M"]
) -> Int64[np.ndarray, " M"]:
    """The image of each index of [0, size) in the permutation that its key selects.

    A Feistel network over a grid slightly larger than `size`, applied again while the
    result is outside. Black and Rogaway 2002, doi:10.1007/3-540-45760-7_9.
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
    """Moves each cell along one side of the grid by a hash of the other, in turn."""
    this, other = map(np.uint64, sides)
    a, b = cell % this, cell // this
    for _ in range(ROUNDS):
        key = key + GOLDEN
        a, b = b, (a + _mix(key ^ b) % this) % this
        this, other = other, this
    return a + b * this


def _mix(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """A bijection of 64 bits in which every input bit affects every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _to_u64(word: int | np.ndarray) -> UInt64[np.ndarray, "..."]:
    """The word as an array of 64 bits; negative numbers in two's complement."""
    if isinstance(word, np.ndarray):
        return word.astype(np.uint64)
    return np.array([int(word) % U64_RANGE], np.uint64)
