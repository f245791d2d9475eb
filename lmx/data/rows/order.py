"""In which order the rows of a token stream are read."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from lmx.config.names import ConfigError, configurable
from lmx.data.keyed import Purpose, below, hashed, permuted
from lmx.data.rows.schedule import Wanted


class Stream(NamedTuple):
    """How much there is to read, and in what portions."""

    tokens: int
    length: int  # T, tokens of a row

    @property
    def rows(self) -> int:
        """Rows in which every token but the first is a target once."""
        return -(-(self.tokens - 1) // self.length)


class Order(ABC):
    """Gives rows their place in a stream: a function of what is wanted and no more."""

    @abstractmethod
    def rows(self, stream: Stream) -> int | None:
        """Rows in one pass over the stream, None where there is no such thing."""

    @abstractmethod
    def offsets(self, wanted: Wanted, stream: Stream) -> Int64[np.ndarray, " M"]:
        """The first token of each of these rows."""


class RowOrder(Order):
    """An order of rows that are already made: it chooses among them and cuts none."""

    @abstractmethod
    def places(self, wanted: Wanted, count: int) -> Int64[np.ndarray, " M"]:
        """Which of `count` rows each wanted one is; `count` or more for padding."""

    def rows(self, stream: Stream) -> int | None:
        return stream.rows

    def offsets(self, wanted: Wanted, stream: Stream) -> Int64[np.ndarray, " M"]:
        return self.places(wanted, stream.rows) * stream.length


@configurable
@dataclass(frozen=True, kw_only=True)
class Shuffled(RowOrder):
    """Every row once an epoch, in an order of its own each epoch; nothing is dropped.

    Epochs follow one another in the middle of a batch, if that is where they end.
    """

    def places(self, wanted: Wanted, count: int) -> Int64[np.ndarray, " M"]:
        epoch, place = np.divmod(wanted.numbers, count)
        return permuted(place, count, hashed(wanted.seed, Purpose.SHUFFLE, epoch))


@configurable
@dataclass(frozen=True, kw_only=True)
class InOrder(RowOrder):
    """One pass from the first row to the last; the last batch is filled up with
    padding. The seed changes nothing.
    """

    def places(self, wanted: Wanted, count: int) -> Int64[np.ndarray, " M"]:
        if wanted.first >= count:
            raise ConfigError(
                f"there is no batch {wanted.step} in order: {wanted.first} rows came"
                f" before it, and one pass has {count}. For more than one pass set"
                " order = @Shuffled()."
            )
        return wanted.numbers


@configurable
@dataclass(frozen=True, kw_only=True)
class Windows(Order):
    """Stretches that begin anywhere, drawn with replacement, as nanoGPT trains."""

    def rows(self, stream: Stream) -> int | None:
        _check_window(stream)
        return None

    def offsets(self, wanted: Wanted, stream: Stream) -> Int64[np.ndarray, " M"]:
        bound = stream.tokens - stream.length
        return below(bound, wanted.seed, Purpose.WINDOW, wanted.step, wanted.rows)


@configurable
@dataclass(frozen=True, kw_only=True)
class Phased(Order):
    """Random windows that cover the stream evenly: each epoch begins at a random phase,
    and reads the whole windows from there on once, in an order of its own.
    """

    def rows(self, stream: Stream) -> int | None:
        """How many fit from any phase below the length of a window."""
        return self._windows(stream)

    def offsets(self, wanted: Wanted, stream: Stream) -> Int64[np.ndarray, " M"]:
        windows = self._windows(stream)
        epoch, place = np.divmod(wanted.numbers, windows)
        phases = 1 + (stream.tokens - 1 - stream.length * windows)
        phase = below(phases, wanted.seed, Purpose.PHASE, epoch)
        key = hashed(wanted.seed, Purpose.SHUFFLE, epoch)
        return phase + permuted(place, windows, key) * stream.length

    def _windows(self, stream: Stream) -> int:
        _check_window(stream)
        return max((stream.tokens - stream.length) // stream.length, 1)


def _check_window(stream: Stream) -> None:
    """Refuses a stream in which not one window fits."""
    if stream.tokens <= stream.length:
        raise ConfigError(
            f"{stream.tokens} tokens hold no window of {stream.length} and its"
            f" next token: set length to {stream.tokens - 1} or less."
        )
