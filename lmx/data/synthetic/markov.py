"""Markov sources and probabilistic grammars, with exact entropies."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from lmx.config.registry import (
    Positive,
    at_least,
    check_fields,
    configurable,
    require,
)
from lmx.data.stateless_random import RandomStream, hash_u64, permute
from lmx.data.synthetic.base import Column, Generated, SyntheticDataset

UNIT = 2**32  # draws are integers below it, and probabilities are multiples of 1 / UNIT
MAX_STATES = 2**16  # tables of a few megabytes
STATIONARY_TOLERANCE = 1e-14  # total variation between two steps
MAX_RULE_FAN = 3  # rules have 0, 1, 2, 0, 1, ... children, so that every grammar nests
Pending = tuple[tuple[int, int], ...]  # (category, depth) still to come, in order


def draw_u32(*words: int | np.ndarray) -> UInt64[np.ndarray, "..."]:
    """A uniform integer below UNIT for each combination of the words."""
    return hash_u64(*words) >> np.uint64(32)


@dataclass(frozen=True, kw_only=True, eq=False)
class MarkovChain:
    """States, each with choices that emit different tokens.

    The tokens therefore determine the states, and the entropy of a token given all
    before it is that of a choice. Shannon 1948, "A Mathematical Theory of
    Communication", section 7. All probabilities are multiples of 2**-32, so that draws
    follow them exactly.

    Attributes:
        thresholds: divide [0, 2**32) into the choices of each state. Sorted uniform
            draws give a uniform distribution over all distributions: Devroye 1986,
            "Non-Uniform Random Variate Generation", section V.2.
        tokens: the token that each choice emits.
        next_states: the state after each choice.
        initial: the probability of each state before the first token.
    """

    thresholds: UInt64[np.ndarray, "states _"]
    tokens: Int64[np.ndarray, "states choices"]
    next_states: Int64[np.ndarray, "states choices"]
    initial: Float64[np.ndarray, "states"]

    @cached_property
    def probabilities(self) -> Float64[np.ndarray, "states choices"]:
        thresholds = self.thresholds.astype(np.float64)
        return np.diff(thresholds, prepend=0.0, append=UNIT) / UNIT

    @cached_property
    def state_entropies(self) -> Float64[np.ndarray, "states"]:
        """The entropy of the choice in each state, in nats."""
        safe = np.where(self.probabilities > 0.0, self.probabilities, 1.0)
        return -(safe * np.log(safe) * (self.probabilities > 0.0)).sum(axis=1)

    def advance(self, state: Float64[np.ndarray, "states"]) -> Float64[np.ndarray, "_"]:
        """The distribution over states one token later."""
        moved = (state[:, None] * self.probabilities).ravel()
        return np.bincount(self.next_states.ravel(), moved, minlength=len(state))

    def expected_entropies(self, count: int) -> Float64[np.ndarray, "_"]:
        """The entropy of each of the first tokens, given the state before it."""
        entropies, state = [], self.initial
        for _ in range(count):
            entropies.append(state @ self.state_entropies)
            state = self.advance(state)
        return np.array(entropies)

    def sample(
        self, first: UInt64[np.ndarray, "B"], draws: UInt64[np.ndarray, "B T"]
    ) -> Int64[np.ndarray, "B T"]:
        """Tokens from draws below 2**32: one for the first state, one per token."""
        ends = np.rint(np.cumsum(self.initial) / self.initial.sum() * UNIT)
        state = np.searchsorted(ends, first.astype(np.float64), side="right")
        tokens = np.empty(draws.shape, np.int64)
        for t in range(draws.shape[1]):
            choice = (draws[:, t, None] >= self.thresholds[state]).sum(axis=1)
            tokens[:, t] = self.tokens[state, choice]
            state = self.next_states[state, choice]
        return tokens


def find_stationary(chain: MarkovChain) -> Float64[np.ndarray, "states"]:
    """The stationary distribution. The chain must be irreducible and aperiodic."""
    state = chain.initial
    while np.abs((later := chain.advance(state)) - state).sum() > STATIONARY_TOLERANCE:
        state = later / later.sum()
    return state


@configurable
@dataclass(frozen=True, kw_only=True)
class Markov(SyntheticDataset):
    """A stationary source: tokens depend on the last `order` tokens.

    The distribution after each context is uniform over all distributions. Targets are
    the tokens with a full context in the row, and the optimal loss is the entropy rate.

    Attributes:
        language_seed: selects the distributions.
    """

    vocab: Annotated[int, at_least(2)]
    order: Positive[int] = 1
    language_seed: int = 0

    def __post_init__(self):
        rule = f"such that vocab**order, the contexts, are at most {MAX_STATES:,}"
        check_fields(
            self,
            order=(self.vocab**self.order <= MAX_STATES, rule),
            sequence_length=(
                self.sequence_length >= self.order,
                f"at least {self.order}, the order",
            ),
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

    vocab: Positive[int]
    categories: Positive[int] = 3
    rules: Annotated[int, at_least(2)] = 3
    depth: Positive[int] = 3
    language_seed: int = 0

    def __post_init__(self):
        rule = f"at least {self.rules}, the rules"
        check_fields(self, vocab=(self.vocab >= self.rules, rule))

    @cached_property
    def first_tokens(self) -> Int64[np.ndarray, "categories rules"]:
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
            require(
                len(order) <= MAX_STATES,
                f"Grammar.depth is {self.depth}, with {self.categories} categories:"
                f" more than {MAX_STATES:,} states. Use less of either.",
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
