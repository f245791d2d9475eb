"""A Markov source: what comes next depends on the last few tokens alone."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int64

from lmx.config.names import ConfigError, configurable
from lmx.data.keyed import Purpose, hashed
from lmx.data.synthetic.made import Made
from lmx.data.synthetic.walk import MOST, Walk, cuts, settled


@configurable
@dataclass(frozen=True, kw_only=True)
class Markov(Made):
    """Tokens of chances that the last `order` tokens decide, from a stationary start.

    The chances after each context are drawn evenly from all distributions there are.
    Targets are the tokens whose whole context stands in the row, and the optimum is the
    entropy rate.

    Attributes:
        language: which chances, of all that can be drawn.
    """

    vocab: int
    order: int = 1
    language: int = 0

    def __post_init__(self):
        self.check(vocab=2, order=1, batch=1, length=self.order)
        if self.vocab**self.order > MOST:
            raise ConfigError(
                f"Markov.order is {self.order}, with {self.vocab} tokens: more than"
                f" {MOST:,} contexts. Take fewer tokens, or a lower order."
            )

    @cached_property
    def walk(self) -> Walk:
        """Its states are the last tokens, the newest of them the last digit."""
        contexts = np.arange(self.vocab**self.order)[:, None]
        choice = np.arange(self.vocab)
        drawn = hashed(self.language, Purpose.TABLE, contexts, choice[1:])
        even = Walk(
            cuts=cuts(drawn),
            tokens=np.tile(choice, (len(contexts), 1)),
            leads=(contexts * self.vocab + choice) % len(contexts),
            start=np.full(len(contexts), 1.0 / len(contexts)),
        )
        return replace(even, start=settled(even))

    @property
    def entropy(self) -> float:
        return float(self.walk.start @ self.walk.nats)

    def said(
        self, seed: int, step: int, row: Int64[np.ndarray, "B 1"]
    ) -> tuple[Int64[np.ndarray, "B _"], Bool[np.ndarray, "#B _"]]:
        index = np.arange(self.length + 2)
        draws = hashed(seed, Purpose.MARKOV, step, row, index) >> np.uint64(32)
        tokens = self.walk.taken(draws[:, 0], draws[:, 1:])
        return tokens, (index[None, :-1] >= self.order)
