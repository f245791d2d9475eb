"""A probabilistic grammar of bounded depth, in which no sentence has two readings."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int64

from lmx.config.registry import ConfigError, configurable
from lmx.data.stateless_random import RandomStream, hash_u64, permute
from lmx.data.synthetic.base import SyntheticDataset
from lmx.data.synthetic.markov_chain import MAX_STATES, MarkovChain, make_thresholds

MAX_RULE_FAN = (
    3  # rules have 0, 1, 2, 0, 1, 2, ... children, so that every grammar nests
)
Pending = tuple[tuple[int, int], ...]  # categories with their depths, the next first


@configurable
@dataclass(frozen=True, kw_only=True)
class Grammar(SyntheticDataset):
    """Sentences of a simple deterministic grammar, one after the other.

    A category is written as a token and then its children, which are categories; the
    token tells the rule, no two of a category beginning alike. So every sentence has
    one reading, and what may follow is decided by what came before: the categories
    still to come. At the greatest depth there are no children. Rows begin with a
    sentence, so that every target has its full context. Korenjak and Hopcroft 1966,
    "Simple deterministic languages".

    Attributes:
        categories: the first of them is a sentence.
        rules: of each category; their chances are drawn evenly from all there are.
        depth: categories within one another, at most.
        language: which grammar, of all that can be drawn.
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
        """The token that each rule begins with: other ones for each category."""
        category, rule = np.indices((self.categories, self.rules))
        key = hash_u64(self.language_seed, RandomStream.TABLE, 0, category).ravel()
        chosen = permute(rule.ravel(), self.vocab, key)
        return chosen.reshape(self.categories, self.rules)

    @cached_property
    def children(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """The categories that follow the token of each rule of each category."""
        category, rule, child = np.indices(
            (self.categories, self.rules, MAX_RULE_FAN - 1)
        )
        drawn = hash_u64(
            self.language_seed, RandomStream.TABLE, 1, category, rule, child
        )
        drawn = (drawn % np.uint64(self.categories)).tolist()
        return tuple(
            tuple(tuple(each[: rule % MAX_RULE_FAN]) for rule, each in enumerate(rules))
            for rules in drawn
        )

    @cached_property
    def chain(self) -> MarkovChain:
        """Its states are what is still to come of a sentence."""
        states: dict[Pending, int] = {((0, 1),): 0}
        order = list(states)
        leads = []
        for waiting in order:  # which grows as new states are met
            after = [self._apply_rule(waiting, rule) for rule in range(self.rules)]
            for state in after:
                if state not in states:
                    states[state] = len(order)
                    order.append(state)
            leads.append([states[state] for state in after])
            self._check_size(len(order))
        top = np.array([waiting[0][0] for waiting in order])
        category, cut = np.indices((self.categories, self.rules - 1))
        chances = make_thresholds(
            hash_u64(self.language_seed, RandomStream.TABLE, 2, category, cut)
        )
        start = np.zeros(len(order))
        start[0] = 1.0
        return MarkovChain(
            thresholds=chances[top],
            tokens=self.first_tokens[top],
            next_states=np.array(leads),
            initial=start,
        )

    @property
    def entropy(self) -> float:
        return float(self.chain.expected_entropies(self.sequence_length + 1)[1:].mean())

    def generate(
        self, seed: int, step: int, row: Int64[np.ndarray, "B 1"]
    ) -> tuple[Int64[np.ndarray, "B _"], Bool[np.ndarray, "#B _"]]:
        index = np.arange(self.sequence_length + 1)
        draws = hash_u64(seed, RandomStream.GRAMMAR, step, row, index) >> np.uint64(32)
        tokens = self.chain.sample(np.zeros(len(row), np.uint64), draws)
        return tokens, np.ones((1, len(index)), bool)

    def _apply_rule(self, waiting: Pending, rule: int) -> Pending:
        """What is still to come once the rule was taken; then another sentence."""
        (category, depth), *later = waiting
        children = self.children[category][rule] if depth < self.depth else ()
        return (*((child, depth + 1) for child in children), *later) or ((0, 1),)

    def _check_size(self, states: int) -> None:
        if states > MAX_STATES:
            raise ConfigError(
                f"Grammar.depth is {self.depth}, with {self.categories} categories:"
                f" more than {MAX_STATES:,} states. Take fewer of either."
            )
