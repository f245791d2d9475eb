"""An unambiguous probabilistic grammar of bounded depth."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from lmx.config.registry import ConfigError, configurable
from lmx.data.stateless_random import RandomStream, hash_u64, permute
from lmx.data.synthetic.base import Column, Generated, SyntheticDataset
from lmx.data.synthetic.markov import MAX_STATES, MarkovChain, draw_u32

MAX_RULE_FAN = 3  # rules have 0, 1, 2, 0, 1, ... children, so that every grammar nests
Pending = tuple[tuple[int, int], ...]  # (category, depth) still to come, in order


@configurable
@dataclass(frozen=True, kw_only=True)
class Grammar(SyntheticDataset):
    """A sequence of sentences of a simple deterministic grammar.

    A category expands to a token and then to its children, which are categories. The
    token identifies the rule, since the rules of a category start with different
    tokens. So every sentence has one parse, and the distribution of the next token
    depends only on the categories still to come. At the maximum depth there are no
    children. Rows start with a sentence, so that every target has its full context.
    Korenjak and Hopcroft 1966, "Simple deterministic languages".

    Attributes:
        categories: the first is that of a sentence.
        rules: per category; the distribution over them is uniformly random.
        depth: maximum nesting of categories.
        language_seed: selects the grammar.
    """

    vocab: int
    categories: int = 3
    rules: int = 3
    depth: int = 3
    language_seed: int = 0

    def __post_init__(self):
        self.require_at_least(
            categories=1, rules=2, depth=1, batch_size=1, sequence_length=1
        )
        self.require_at_least(vocab=self.rules)

    @cached_property
    def first_tokens(self) -> Int64[np.ndarray, "categories rules"]:
        """The first token of each rule."""
        category, rule = np.indices((self.categories, self.rules))
        key = hash_u64(self.language_seed, RandomStream.TABLE, 0, category).ravel()
        tokens = permute(rule.ravel(), self.vocab, key)
        return tokens.reshape(self.categories, self.rules)

    @cached_property
    def children(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """The child categories of each rule of each category."""
        indices = np.indices((self.categories, self.rules, MAX_RULE_FAN - 1))
        drawn = hash_u64(self.language_seed, RandomStream.TABLE, 1, *indices)
        drawn = (drawn % np.uint64(self.categories)).tolist()
        return tuple(
            tuple(tuple(c[: rule % MAX_RULE_FAN]) for rule, c in enumerate(rules))
            for rules in drawn
        )

    @cached_property
    def chain(self) -> MarkovChain:
        """Its states are the categories still to come in a sentence."""
        states: dict[Pending, int] = {((0, 1),): 0}
        order = list(states)
        next_states = []
        for pending in order:  # grows while new states are found
            after = [self._apply_rule(pending, rule) for rule in range(self.rules)]
            for state in after:
                if state not in states:
                    states[state] = len(order)
                    order.append(state)
            next_states.append([states[state] for state in after])
            if len(order) > MAX_STATES:
                raise ConfigError(
                    f"Grammar.depth is {self.depth}, with {self.categories} categories:"
                    f" more than {MAX_STATES:,} states. Use less of either."
                )
        top = np.array([pending[0][0] for pending in order])
        indices = np.indices((self.categories, self.rules - 1))
        drawn = draw_u32(self.language_seed, RandomStream.TABLE, 2, *indices)
        return MarkovChain(
            thresholds=np.sort(drawn, axis=1)[top],
            tokens=self.first_tokens[top],
            next_states=np.array(next_states),
            initial=np.eye(1, len(order))[0],
        )

    @property
    def entropy(self) -> float:
        return float(self.chain.expected_entropies(self.sequence_length + 1)[1:].mean())

    def generate(self, seed: int, step: Column, row: Column) -> Generated:
        index = np.arange(self.sequence_length + 1)
        draws = draw_u32(seed, RandomStream.GRAMMAR, step, row, index)
        tokens = self.chain.sample(np.zeros(len(row), np.uint64), draws)
        return tokens, np.ones((1, len(index)), bool)

    def _apply_rule(self, pending: Pending, rule: int) -> Pending:
        """What is still to come after a rule; after a sentence, another sentence."""
        (category, depth), *later = pending
        children = self.children[category][rule] if depth < self.depth else ()
        return (*((child, depth + 1) for child in children), *later) or ((0, 1),)
