"""A probabilistic grammar of bounded depth, in which no sentence has two readings."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int64

from lmx.config.names import ConfigError, configurable
from lmx.data.keyed import Purpose, hashed, permuted
from lmx.data.synthetic.made import Made
from lmx.data.synthetic.walk import MOST, Walk, cuts

FAN = 3  # rules have 0, 1, 2, 0, 1, 2, ... children, so that every grammar nests
Waiting = tuple[tuple[int, int], ...]  # categories with their depths, the next first


@configurable
@dataclass(frozen=True, kw_only=True)
class Grammar(Made):
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
    language: int = 0

    def __post_init__(self):
        self.check(categories=1, rules=2, depth=1, batch=1, length=1)
        self.check(vocab=self.rules)

    @cached_property
    def first(self) -> Int64[np.ndarray, "categories rules"]:
        """The token that each rule begins with: other ones for each category."""
        category, rule = np.indices((self.categories, self.rules))
        key = hashed(self.language, Purpose.TABLE, 0, category).ravel()
        chosen = permuted(rule.ravel(), self.vocab, key)
        return chosen.reshape(self.categories, self.rules)

    @cached_property
    def children(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """The categories that follow the token of each rule of each category."""
        category, rule, child = np.indices((self.categories, self.rules, FAN - 1))
        drawn = hashed(self.language, Purpose.TABLE, 1, category, rule, child)
        drawn = (drawn % np.uint64(self.categories)).tolist()
        return tuple(
            tuple(tuple(each[: rule % FAN]) for rule, each in enumerate(rules))
            for rules in drawn
        )

    @cached_property
    def walk(self) -> Walk:
        """Its states are what is still to come of a sentence."""
        states: dict[Waiting, int] = {((0, 1),): 0}
        order = list(states)
        leads = []
        for waiting in order:  # which grows as new states are met
            after = [self._after(waiting, rule) for rule in range(self.rules)]
            for state in after:
                if state not in states:
                    states[state] = len(order)
                    order.append(state)
            leads.append([states[state] for state in after])
            self._check_size(len(order))
        top = np.array([waiting[0][0] for waiting in order])
        category, cut = np.indices((self.categories, self.rules - 1))
        chances = cuts(hashed(self.language, Purpose.TABLE, 2, category, cut))
        start = np.zeros(len(order))
        start[0] = 1.0
        return Walk(
            cuts=chances[top],
            tokens=self.first[top],
            leads=np.array(leads),
            start=start,
        )

    @property
    def entropy(self) -> float:
        return float(self.walk.expected(self.length + 1)[1:].mean())

    def said(
        self, seed: int, step: int, row: Int64[np.ndarray, "B 1"]
    ) -> tuple[Int64[np.ndarray, "B _"], Bool[np.ndarray, "#B _"]]:
        index = np.arange(self.length + 1)
        draws = hashed(seed, Purpose.GRAMMAR, step, row, index) >> np.uint64(32)
        tokens = self.walk.taken(np.zeros(len(row), np.uint64), draws)
        return tokens, np.ones((1, len(index)), bool)

    def _after(self, waiting: Waiting, rule: int) -> Waiting:
        """What is still to come once the rule was taken; then another sentence."""
        (category, depth), *later = waiting
        children = self.children[category][rule] if depth < self.depth else ()
        return (*((child, depth + 1) for child in children), *later) or ((0, 1),)

    def _check_size(self, states: int) -> None:
        if states > MOST:
            raise ConfigError(
                f"Grammar.depth is {self.depth}, with {self.categories} categories:"
                f" more than {MOST:,} states. Take fewer of either."
            )
