"""Random tokens said once and once more: what can be told is what was said before."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int64

from lmx.config.registry import ConfigError, configurable
from lmx.data.stateless_random import RandomStream, hash_u64, randint
from lmx.data.synthetic.base import SyntheticDataset

HALF_BITS = np.uint64(32)  # bits of a draw
UNIT = 2**32


@configurable
@dataclass(frozen=True, kw_only=True)
class RepeatTask(SyntheticDataset):
    """Random tokens, said twice: only the second saying can be, and is, predicted.

    The task of induction heads. Olsson et al. 2022, arXiv:2209.11895.
    """

    vocab: int

    entropy: ClassVar[float] = 0.0

    def __post_init__(self):
        self.require_at_least(vocab=1, batch_size=1, sequence_length=1)

    def generate(
        self, seed: int, step: int, row: Int64[np.ndarray, "B 1"]
    ) -> tuple[Int64[np.ndarray, "B _"], Bool[np.ndarray, "#B _"]]:
        half = (self.sequence_length + 2) // 2
        once = randint(
            self.vocab, seed, RandomStream.REPEAT, step, row, np.arange(half)
        )
        return np.concatenate([once, once], axis=1), _mask_from(half, 2 * half)


@configurable
@dataclass(frozen=True, kw_only=True)
class Copy(SyntheticDataset):
    """Random tokens, a mark, and the same tokens again, which alone are predicted.

    The mark is the largest token. Graves et al. 2014, arXiv:1410.5401, section 4.1.

    Attributes:
        noise: chance that a token of the copy is drawn anew from all but the mark.
    """

    vocab: int  # V, with the mark
    noise: float = 0.0

    def __post_init__(self):
        self.require_at_least(vocab=2, batch_size=1, sequence_length=2)
        if not 0.0 <= self.noise <= 1.0:
            raise ConfigError(f"Copy.noise is {self.noise}: it must be from 0 to 1.")

    @property
    def entropy(self) -> float:
        wrong = self._noise_threshold / UNIT / (self.vocab - 1)
        right = 1.0 - wrong * (self.vocab - 2)
        others = (self.vocab - 2) * wrong * math.log(wrong) if wrong else 0.0
        return -right * math.log(right) - others

    def generate(
        self, seed: int, step: int, row: Int64[np.ndarray, "B 1"]
    ) -> tuple[Int64[np.ndarray, "B _"], Bool[np.ndarray, "#B _"]]:
        half = (self.sequence_length + 1) // 2
        place, mark = np.arange(2 * half), self.vocab - 1
        drawn = randint(mark, seed, RandomStream.COPY, step, row, place)
        chance = (
            hash_u64(seed, RandomStream.NOISE, step, row, place[half:]) >> HALF_BITS
        )
        once, anew = np.split(drawn, 2, axis=1)
        again = np.where(chance < np.uint64(self._noise_threshold), anew, once)
        marks = np.full((len(row), 1), mark)
        return np.concatenate([once, marks, again], 1), _mask_from(
            half + 1, 2 * half + 1
        )

    @property
    def _noise_threshold(self) -> int:
        """The noise as a part of 2**32, which is exactly how often it comes."""
        return round(self.noise * UNIT)


def _mask_from(first: int, size: int) -> Bool[np.ndarray, "1 _"]:
    """True from `first` on."""
    return (np.arange(size) >= first)[None]
