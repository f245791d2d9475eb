"""A Markov source: what comes next depends on the last few tokens alone."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int64

from lmx.config.registry import ConfigError, configurable
from lmx.data.stateless_random import RandomStream, hash_u64
from lmx.data.synthetic.base import SyntheticDataset
from lmx.data.synthetic.markov_chain import (
    MAX_STATES,
    MarkovChain,
    find_stationary,
    make_thresholds,
)


@configurable
@dataclass(frozen=True, kw_only=True)
class Markov(SyntheticDataset):
    """Tokens of chances that the last `order` tokens decide, from a stationary start.

    The chances after each context are drawn evenly from all distributions there are.
    Targets are the tokens whose whole context stands in the row, and the optimum is the
    entropy rate.

    Attributes:
        language: which chances, of all that can be drawn.
    """

    vocab: int
    order: int = 1
    language_seed: int = 0

    def __post_init__(self):
        self.require_at_least(
            vocab=2, order=1, batch_size=1, sequence_length=self.order
        )
        if self.vocab**self.order > MAX_STATES:
            raise ConfigError(
                f"Markov.order is {self.order}, with {self.vocab} tokens: more than"
                f" {MAX_STATES:,} contexts. Take fewer tokens, or a lower order."
            )

    @cached_property
    def chain(self) -> MarkovChain:
        """Its states are the last tokens, the newest of them the last digit."""
        contexts = np.arange(self.vocab**self.order)[:, None]
        choice = np.arange(self.vocab)
        drawn = hash_u64(self.language_seed, RandomStream.TABLE, contexts, choice[1:])
        even = MarkovChain(
            thresholds=make_thresholds(drawn),
            tokens=np.tile(choice, (len(contexts), 1)),
            next_states=(contexts * self.vocab + choice) % len(contexts),
            initial=np.full(len(contexts), 1.0 / len(contexts)),
        )
        return replace(even, start=find_stationary(even))

    @property
    def entropy(self) -> float:
        return float(self.chain.initial @ self.chain.state_entropies)

    def generate(
        self, seed: int, step: int, row: Int64[np.ndarray, "B 1"]
    ) -> tuple[Int64[np.ndarray, "B _"], Bool[np.ndarray, "#B _"]]:
        index = np.arange(self.sequence_length + 2)
        draws = hash_u64(seed, RandomStream.MARKOV, step, row, index) >> np.uint64(32)
        tokens = self.chain.sample(draws[:, 0], draws[:, 1:])
        return tokens, (index[None, :-1] >= self.order)
