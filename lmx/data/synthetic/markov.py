"""A Markov source: the next token depends on the last few tokens alone."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from lmx.config.registry import ConfigError, configurable
from lmx.data.stateless_random import RandomStream
from lmx.data.synthetic.base import Column, Generated, SyntheticDataset
from lmx.data.synthetic.markov_chain import (
    MAX_STATES,
    MarkovChain,
    draw_u32,
    find_stationary,
)


@configurable
@dataclass(frozen=True, kw_only=True)
class Markov(SyntheticDataset):
    """A stationary source: tokens depend on the last `order` tokens.

    The distribution after each context is uniform over all distributions. Targets are
    the tokens with a full context in the row, and the optimal loss is the entropy rate.

    Attributes:
        language_seed: selects the distributions.
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
                f" {MAX_STATES:,} contexts. Use fewer tokens or a lower order."
            )

    @cached_property
    def chain(self) -> MarkovChain:
        """Its states are the last tokens; the newest is the last digit."""
        contexts = np.arange(self.vocab**self.order)[:, None]
        choice = np.arange(self.vocab)
        drawn = draw_u32(self.language_seed, RandomStream.TABLE, contexts, choice[1:])
        chain = MarkovChain(
            thresholds=np.sort(drawn, axis=1),
            tokens=np.tile(choice, (len(contexts), 1)),
            next_states=(contexts * self.vocab + choice) % len(contexts),
            initial=np.full(len(contexts), 1.0 / len(contexts)),
        )
        return replace(chain, initial=find_stationary(chain))

    @property
    def entropy(self) -> float:
        return float(self.chain.initial @ self.chain.state_entropies)

    def generate(self, seed: int, step: Column, row: Column) -> Generated:
        index = np.arange(self.sequence_length + 2)
        draws = draw_u32(seed, RandomStream.MARKOV, step, row, index)
        tokens = self.chain.sample(draws[:, 0], draws[:, 1:])
        return tokens, (index[None, :-1] >= self.order)
