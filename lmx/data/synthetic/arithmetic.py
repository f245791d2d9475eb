"""Modular arithmetic: the right side of an equation follows from the left side."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from lmx.config.registry import ConfigError, configurable
from lmx.data.corpus.corpus import Split, check_fraction
from lmx.data.stateless_random import RandomStream, hash_u64, permute, randint
from lmx.data.synthetic.base import Column, Generated, SyntheticDataset

Operation = Literal["add", "subtract", "multiply"]
OPERATIONS: Mapping[Operation, Callable] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
}
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

    modulus: int
    operation: Operation = "add"
    split: Split = "train"
    held_out: float = 0.5
    language_seed: int = 0

    entropy: ClassVar[float] = 0.0

    def __post_init__(self):
        self.require_at_least(
            modulus=2, batch_size=1, sequence_length=EQUATION_TOKENS - 1
        )
        check_fraction("Arithmetic.held_out", self.held_out)
        if not self.pairs[1]:
            raise ConfigError(
                f"Arithmetic.held_out is {self.held_out}, which leaves no equation for"
                f" {self.split}: it needs at least one of {self.modulus**2} pairs."
            )

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
        c = OPERATIONS[self.operation](a, b) % self.modulus
        tokens = np.stack([a, b, np.full_like(a, self.modulus), c], axis=1)
        tokens = tokens.reshape(len(row), -1)
        place = np.arange(tokens.shape[1]) % EQUATION_TOKENS
        return tokens, (place == EQUATION_TOKENS - 1)[None]
