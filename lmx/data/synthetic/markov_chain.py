"""Markov chains with states that follow from the tokens, and exact entropies."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from lmx.data.stateless_random import hash_u64

UNIT = 2**32  # draws are integers below it, and probabilities are multiples of 1 / UNIT
MAX_STATES = 2**16  # tables of a few megabytes
STATIONARY_TOLERANCE = 1e-14  # total variation between two steps


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
        """The probability of each choice."""
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
