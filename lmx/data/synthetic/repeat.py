"""Random tokens that are repeated: the second occurrence can be predicted."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool

from lmx.config.registry import ConfigError, configurable
from lmx.data.stateless_random import RandomStream, randint
from lmx.data.synthetic.base import Column, Generated, SyntheticDataset
from lmx.data.synthetic.markov_chain import UNIT, draw_u32


@configurable
@dataclass(frozen=True, kw_only=True)
class RepeatTask(SyntheticDataset):
    """Random tokens, then the same tokens again, which are the targets.

    The task of induction heads. Olsson et al. 2022, arXiv:2209.11895.
    """

    vocab: int

    entropy: ClassVar[float] = 0.0

    def __post_init__(self):
        self.require_at_least(vocab=1, batch_size=1, sequence_length=1)

    def generate(self, seed: int, step: Column, row: Column) -> Generated:
        half = (self.sequence_length + 2) // 2
        tokens = randint(
            self.vocab, seed, RandomStream.REPEAT, step, row, np.arange(half)
        )
        return np.tile(tokens, 2), _mask_from(half, 2 * half)


@configurable
@dataclass(frozen=True, kw_only=True)
class Copy(SyntheticDataset):
    """Random tokens, a separator, and the same tokens again, which are the targets.

    The separator is the largest token. Graves et al. 2014, arXiv:1410.5401, section
    4.1.

    Attributes:
        noise: probability that a copied token is replaced by a random one, which can be
            any token but the separator.
    """

    vocab: int  # V, with the separator
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

    def generate(self, seed: int, step: Column, row: Column) -> Generated:
        half = (self.sequence_length + 1) // 2
        place, separator = np.arange(2 * half), self.vocab - 1
        drawn = randint(separator, seed, RandomStream.COPY, step, row, place)
        draws = draw_u32(seed, RandomStream.NOISE, step, row, place[half:])
        tokens, replacements = np.split(drawn, 2, axis=1)
        copy = np.where(draws < np.uint64(self._noise_threshold), replacements, tokens)
        separators = np.full((len(row), 1), separator)
        all_tokens = np.concatenate([tokens, separators, copy], axis=1)
        return all_tokens, _mask_from(half + 1, 2 * half + 1)

    @property
    def _noise_threshold(self) -> int:
        """The noise in units of 2**-32, so that its probability is exact."""
        return round(self.noise * UNIT)


def _mask_from(first: int, size: int) -> Bool[np.ndarray, "1 _"]:
    """True from index `first` on."""
    return (np.arange(size) >= first)[None]
