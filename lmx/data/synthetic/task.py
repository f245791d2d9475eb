"""Synthetic tasks: associative recall, repetition, copying and modular arithmetic."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Bool

from lmx.config.registry import (
    Fraction,
    Positive,
    Rate,
    at_least,
    check_fields,
    configurable,
)
from lmx.data.corpus.corpus import Split
from lmx.data.stateless_random import RandomStream, hash_u64, permute, randint
from lmx.data.synthetic.base import Column, Generated, SyntheticDataset
from lmx.data.synthetic.markov import UNIT, draw_u32


@configurable
@dataclass(frozen=True, kw_only=True)
class AssociativeRecall(SyntheticDataset):
    """Keys, each followed by its value, which is constant within a row.

    A value is a target if its key occurred earlier in the row, and is then certain.
    Keys are the tokens below `keys`, values the next `values` tokens. Arora et al.
    2023, arXiv:2312.04927, section 3.
    """

    keys: Positive[int]
    values: Positive[int]
    sequence_length: Annotated[int, at_least(3)]

    entropy: ClassVar[float] = 0.0

    @property
    def vocab(self) -> int:
        return self.keys + self.values

    def generate(self, seed: int, step: Column, row: Column) -> Generated:
        pair = np.arange(self.sequence_length // 2 + 1)
        key = randint(self.keys, seed, RandomStream.RECALL, step, row, pair, 0)
        value = randint(self.values, seed, RandomStream.RECALL, step, row, key, 1)
        first = (key[:, :, None] == key[:, None, :]).argmax(axis=2)
        is_target = np.stack([np.zeros(first.shape, bool), first < pair], axis=2)
        tokens = np.stack([key, self.keys + value], axis=2)
        return tokens.reshape(len(row), -1), is_target.reshape(len(row), -1)


@configurable
@dataclass(frozen=True, kw_only=True)
class RepeatTask(SyntheticDataset):
    """Random tokens, then the same tokens again, which are the targets.

    The task of induction heads. Olsson et al. 2022, arXiv:2209.11895.
    """

    vocab: Positive[int]

    entropy: ClassVar[float] = 0.0

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

    vocab: Annotated[int, at_least(2)]  # V, with the separator
    sequence_length: Annotated[int, at_least(2)]
    noise: Fraction[float] = 0.0

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
    return (np.arange(size) >= first)[None]


Operation = Literal["add", "subtract", "multiply"]  # functions of NumPy
EQUATION_TOKENS = 4  # a, b, the equals sign, the result


@configurable
@dataclass(frozen=True, kw_only=True)
class Arithmetic(SyntheticDataset):
    """A sequence of equations `a b = c` modulo a number. The targets are `c`.

    The pairs (a, b) are divided into two splits, so that validation has results that
    training never shows. A number is a token; the sign is the largest token. Power et
    al. 2022, arXiv:2201.02177.

    Attributes:
        held_out: fraction of all pairs that is for validation.
        language_seed: selects those pairs.
    """

    modulus: Annotated[int, at_least(2)]
    sequence_length: Annotated[int, at_least(EQUATION_TOKENS - 1)]
    operation: Operation = "add"
    split: Split = "train"
    held_out: Rate[float] = 0.5
    language_seed: int = 0

    entropy: ClassVar[float] = 0.0

    def __post_init__(self):
        rule = f"such that {self.split} has some of the {self.modulus**2} pairs"
        check_fields(self, held_out=(self.pairs[1] > 0, rule))

    @property
    def vocab(self) -> int:
        return self.modulus + 1

    @property
    def pairs(self) -> tuple[int, int]:
        """The first pair of the split, in random order, and the number of pairs."""
        total = self.modulus**2
        held_out = round(self.held_out * total)
        if self.split == "validation":
            return 0, held_out
        return held_out, total - held_out

    def generate(self, seed: int, step: Column, row: Column) -> Generated:
        first, count = self.pairs
        equation = np.arange(self.sequence_length // EQUATION_TOKENS + 1)
        drawn = randint(count, seed, RandomStream.EQUATION, step, row, equation)
        index = (first + drawn).ravel()
        key = np.repeat(hash_u64(self.language_seed, RandomStream.TABLE), len(index))
        a, b = np.divmod(permute(index, self.modulus**2, key), self.modulus)
        c = getattr(np, self.operation)(a, b) % self.modulus
        tokens = np.stack([a, b, np.full_like(a, self.modulus), c], axis=1)
        tokens = tokens.reshape(len(row), -1)
        place = np.arange(tokens.shape[1]) % EQUATION_TOKENS
        return tokens, (place == EQUATION_TOKENS - 1)[None]
