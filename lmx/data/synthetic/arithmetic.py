"""Modular arithmetic: equations whose right side follows from their left side."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Int64

from lmx.config.registry import ConfigError, configurable
from lmx.data.corpus.corpus import Split, check_fraction
from lmx.data.stateless_random import RandomStream, hash_u64, permute, randint
from lmx.data.synthetic.base import SyntheticDataset

Operation = Literal["add", "subtract", "multiply"]
OPERATIONS: Mapping[Operation, Callable] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
}
EQUATION_TOKENS = 4  # tokens of an equation: a, b, the sign, a result


@configurable
@dataclass(frozen=True, kw_only=True)
class Arithmetic(SyntheticDataset):
    """Equations `a b = c` modulo a number, one after the other; `c` is predicted.

    The pairs (a, b) are parted into two splits, so that validation asks for results
    that were never seen. A number is a token; the sign is the largest. Power et al.
    2022, arXiv:2201.02177.

    Attributes:
        held_out: of all pairs, for validation.
        language: which pairs those are.
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
                f" {self.split}: of {self.modulus**2} pairs it needs at least one."
            )

    @property
    def vocab(self) -> int:
        return self.modulus + 1

    @property
    def pairs(self) -> tuple[int, int]:
        """The first pair of the split, in the order of `language_seed`, and their number."""
        every = self.modulus**2
        held = round(self.held_out * every)
        return (0, held) if self.split == "validation" else (held, every - held)

    def generate(
        self, seed: int, step: int, row: Int64[np.ndarray, "B 1"]
    ) -> tuple[Int64[np.ndarray, "B _"], Bool[np.ndarray, "#B _"]]:
        first, count = self.pairs
        equation = np.arange(self.sequence_length // EQUATION_TOKENS + 1)
        drawn = randint(count, seed, RandomStream.EQUATION, step, row, equation)
        index = (first + drawn).ravel()
        key = np.repeat(hash_u64(self.language_seed, RandomStream.TABLE), len(index))
        a, b = np.divmod(permute(index, self.modulus**2, key), self.modulus)
        c = OPERATIONS[self.operation](a, b) % self.modulus
        tokens = np.stack([a, b, np.full_like(a, self.modulus), c], axis=1)
        told = (
            np.arange(tokens.size // len(row)) % EQUATION_TOKENS == EQUATION_TOKENS - 1
        )
        return tokens.reshape(len(row), -1), told[None]
