"""Which stretch of a token stream each row of each batch is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from lmx.config.names import ConfigError, configurable
from lmx.data.keyed import Purpose, below, hashed, permuted


class Stream(NamedTuple):
    """How much there is to read, and in what portions."""

    tokens: int
    batch: int  # B, rows over all devices
    length: int  # T, tokens

    @property
    def rows(self) -> int:
        """Rows in which every token but the first is a target once."""
        return -(-(self.tokens - 1) // self.length)


class Order(ABC):
    """Gives rows their place. A function of (seed, step, row) and nothing else."""

    @abstractmethod
    def steps(self, stream: Stream) -> int | None:
        """Batches in one pass over the stream, None where there is no such thing."""

    @abstractmethod
    def offsets(
        self, seed: int, step: int, rows: Int64[np.ndarray, " M"], stream: Stream
    ) -> Int64[np.ndarray, " M"]:
        """The first token of each of these rows of the batch of that step."""


@configurable
@dataclass(frozen=True, kw_only=True)
class Shuffled(Order):
    """Every row once an epoch, in an order of its own each epoch; nothing is dropped.

    Epochs follow one another in the middle of a batch, if that is where they end.
    """

    def steps(self, stream: Stream) -> int | None:
        return -(-stream.rows // stream.batch)

    def offsets(
        self, seed: int, step: int, rows: Int64[np.ndarray, " M"], stream: Stream
    ) -> Int64[np.ndarray, " M"]:
        epoch, place = np.divmod(step * stream.batch + rows, stream.rows)
        key = hashed(seed, Purpose.SHUFFLE, epoch)
        return permuted(place, stream.rows, key) * stream.length


@configurable
@dataclass(frozen=True, kw_only=True)
class Windows(Order):
    """Stretches that begin anywhere, drawn with replacement, as nanoGPT trains."""

    def steps(self, stream: Stream) -> int | None:
        _check_window(stream)
        return None

    def offsets(
        self, seed: int, step: int, rows: Int64[np.ndarray, " M"], stream: Stream
    ) -> Int64[np.ndarray, " M"]:
        return below(stream.tokens - stream.length, seed, Purpose.WINDOW, step, rows)


@configurable
@dataclass(frozen=True, kw_only=True)
class Phased(Order):
    """Random windows that cover the stream evenly: each epoch begins at a random phase,
    and reads the whole windows from there on once, in an order of its own.
    """

    def steps(self, stream: Stream) -> int | None:
        return -(-self._windows(stream) // stream.batch)

    def offsets(
        self, seed: int, step: int, rows: Int64[np.ndarray, " M"], stream: Stream
    ) -> Int64[np.ndarray, " M"]:
        windows = self._windows(stream)
        epoch, place = np.divmod(step * stream.batch + rows, windows)
        phases = 1 + (stream.tokens - 1 - stream.length * windows)
        phase = below(phases, seed, Purpose.PHASE, epoch)
        key = hashed(seed, Purpose.SHUFFLE, epoch)
        return phase + permuted(place, windows, key) * stream.length

    def _windows(self, stream: Stream) -> int:
        """How many fit from any phase below the length of a window."""
        _check_window(stream)
        return max((stream.tokens - stream.length) // stream.length, 1)


def _check_window(stream: Stream) -> None:
    """Refuses a stream in which not one window fits."""
    if stream.tokens <= stream.length:
        raise ConfigError(
            f"{stream.tokens} tokens hold no window of {stream.length} and its"
            f" next token: set length to {stream.tokens - 1} or less."
        )


@configurable
@dataclass(frozen=True, kw_only=True)
class InOrder(Order):
    """One pass from the first token to the last; the last batch is filled up with
    padding. The seed changes nothing.
    """

    def steps(self, stream: Stream) -> int | None:
        return -(-stream.rows // stream.batch)

    def offsets(
        self, seed: int, step: int, rows: Int64[np.ndarray, " M"], stream: Stream
    ) -> Int64[np.ndarray, " M"]:
        if step * stream.batch >= stream.rows:
            raise ConfigError(
                f"there is no batch {step} in order: one pass of {stream.rows} rows is"
                f" {self.steps(stream)} batches of {stream.batch}. For more than one"
                " pass set order = @Shuffled()."
            )
        return (step * stream.batch + rows) * stream.length
