"""Walks whose state the tokens so far decide, so that their entropy is a sum."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int64, UInt64

UNIT = 2**32  # draws are whole numbers below it, and chances are parts of it
MAX_STATES = 2**16  # states, for tables of some megabytes
STATIONARY_TOLERANCE = 1e-14  # total variation between two steps


def make_thresholds(
    drawn: UInt64[np.ndarray, "states _"],
) -> UInt64[np.ndarray, "states _"]:
    """Where to cut [0, 2**32) into choices, from one draw less than there are choices.

    The parts between sorted draws are a distribution drawn evenly from all there are.
    Devroye 1986, "Non-Uniform Random Variate Generation", section V.2.
    """
    return np.sort(drawn >> np.uint64(32), axis=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class MarkovChain:
    """States, and choices in each of them that all say different tokens.

    So the tokens decide the states, and the entropy of a token given all before it is
    that of a choice. Shannon 1948, "A Mathematical Theory of Communication", section 7.
    All chances are parts of 2**32, so that draws follow them exactly.

    Attributes:
        cuts: where the choices of a state divide [0, 2**32).
        tokens: what a choice says.
        leads: the state after it.
        start: the chance of each state before the first token.
    """

    thresholds: UInt64[np.ndarray, "states _"]
    tokens: Int64[np.ndarray, "states choices"]
    next_states: Int64[np.ndarray, "states choices"]
    initial: Float64[np.ndarray, "states"]

    @cached_property
    def probabilities(self) -> Float64[np.ndarray, "states choices"]:
        """The probability of each choice."""
        return (
            np.diff(self.thresholds.astype(np.float64), prepend=0.0, append=UNIT) / UNIT
        )

    @cached_property
    def state_entropies(self) -> Float64[np.ndarray, "states"]:
        """The entropy of the choice in each state."""
        safe = np.where(self.probabilities > 0.0, self.probabilities, 1.0)
        return -(safe * np.log(safe) * (self.probabilities > 0.0)).sum(axis=1)

    def advance(self, state: Float64[np.ndarray, "states"]) -> Float64[np.ndarray, "_"]:
        """The chance of each state one token later."""
        moved = (state[:, None] * self.probabilities).ravel()
        return np.bincount(self.next_states.ravel(), moved, minlength=len(state))

    def expected_entropies(self, count: int) -> Float64[np.ndarray, "_"]:
        """The entropy of each of the first tokens, given the state before it."""
        found, state = [], self.initial
        for _ in range(count):
            found.append(state @ self.state_entropies)
            state = self.advance(state)
        return np.array(found)

    def sample(
        self, first: UInt64[np.ndarray, "B"], draws: UInt64[np.ndarray, "B T"]
    ) -> Int64[np.ndarray, "B T"]:
        """The tokens that draws below 2**32 lead to: one for the state, then theirs."""
        ends = np.rint(np.cumsum(self.initial) / self.initial.sum() * UNIT)
        state = np.searchsorted(ends, first.astype(np.float64), side="right")
        said = np.empty(draws.shape, np.int64)
        for t in range(draws.shape[1]):
            choice = (draws[:, t, None] >= self.thresholds[state]).sum(axis=1)
            said[:, t] = self.tokens[state, choice]
            state = self.next_states[state, choice]
        return said


def find_stationary(walk: MarkovChain) -> Float64[np.ndarray, "states"]:
    """The chance of each state after a walk without end. Every state must be reached
    from every other, at times that have no common period."""
    state = walk.initial
    while np.abs((later := walk.advance(state)) - state).sum() > STATIONARY_TOLERANCE:
        state = later / later.sum()
    return state
