"""Modular arithmetic: equations whose right side follows from their left side."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Int64

from lmx.config.names import ConfigError, configurable
from lmx.data.corpora.corpus import Split, check_fraction
from lmx.data.keyed import Purpose, below, hashed, permuted
from lmx.data.synthetic.made import Made

Operation = Literal["add", "subtract", "multiply"]
RESULT: Mapping[Operation, Callable] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
}
TERMS = 4  # tokens of an equation: a, b, the sign, a result


@configurable
@dataclass(frozen=True, kw_only=True)
class Arithmetic(Made):
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
    language: int = 0

    entropy: ClassVar[float] = 0.0

    def __post_init__(self):
        self.check(modulus=2, batch=1, length=TERMS - 1)
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
        """The first pair of the split, in the order of `language`, and their number."""
        every = self.modulus**2
        held = round(self.held_out * every)
        return (0, held) if self.split == "validation" else (held, every - held)

    def said(
        self, seed: int, step: int, row: Int64[np.ndarray, "B 1"]
    ) -> tuple[Int64[np.ndarray, "B _"], Bool[np.ndarray, "#B _"]]:
        first, count = self.pairs
        equation = np.arange(self.length // TERMS + 1)
        drawn = below(count, seed, Purpose.EQUATION, step, row, equation)
        index = (first + drawn).ravel()
        key = np.repeat(hashed(self.language, Purpose.TABLE), len(index))
        a, b = np.divmod(permuted(index, self.modulus**2, key), self.modulus)
        c = RESULT[self.operation](a, b) % self.modulus
        tokens = np.stack([a, b, np.full_like(a, self.modulus), c], axis=1)
        told = np.arange(tokens.size // len(row)) % TERMS == TERMS - 1
        return tokens.reshape(len(row), -1), told[None]
