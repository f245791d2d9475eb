"""In which order the rows of a token stream are read."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from lmx.config.registry import ConfigError, configurable
from lmx.data.sampling.schedule import RowRequest
from lmx.data.stateless_random import RandomStream, hash_u64, permute, randint


class TokenStream(NamedTuple):
    """How much there is to read, and in what portions."""

    tokens: int
    sequence_length: int  # T, tokens of a row

    @property
    def rows(self) -> int:
        """Rows in which every token but the first is a target once."""
        return -(-(self.tokens - 1) // self.sequence_length)


class Order(ABC):
    """Gives rows their place in a stream: a function of what is wanted and no more."""

    @abstractmethod
    def count_rows(self, stream: TokenStream) -> int | None:
        """Rows in one pass over the stream, None where there is no such thing."""

    @abstractmethod
    def find_offsets(
        self, request: RowRequest, stream: TokenStream
    ) -> Int64[np.ndarray, " M"]:
        """The first token of each of these rows."""


class RowOrder(Order):
    """An order of rows that are already made: it chooses among them and cuts none."""

    @abstractmethod
    def select_rows(self, request: RowRequest, count: int) -> Int64[np.ndarray, " M"]:
        """Which of `count` rows each wanted one is; `count` or more for padding."""

    def count_rows(self, stream: TokenStream) -> int | None:
        return stream.rows

    def find_offsets(
        self, request: RowRequest, stream: TokenStream
    ) -> Int64[np.ndarray, " M"]:
        return self.select_rows(request, stream.rows) * stream.sequence_length


@configurable
@dataclass(frozen=True, kw_only=True)
class Shuffled(RowOrder):
    """Every row once an epoch, in an order of its own each epoch; nothing is dropped.

    Epochs follow one another in the middle of a batch, if that is where they end.
    """

    def select_rows(self, request: RowRequest, count: int) -> Int64[np.ndarray, " M"]:
        epoch, place = np.divmod(request.indices, count)
        return permute(
            place, count, hash_u64(request.seed, RandomStream.SHUFFLE, epoch)
        )


@configurable
@dataclass(frozen=True, kw_only=True)
class Sequential(RowOrder):
    """One pass from the first row to the last; the last batch is filled up with
    padding. The seed changes nothing.
    """

    def select_rows(self, request: RowRequest, count: int) -> Int64[np.ndarray, " M"]:
        if request.rows_before >= count:
            raise ConfigError(
                f"there is no batch {request.step} in order: {request.rows_before} rows came"
                f" before it, and one pass has {count}. For more than one pass set"
                " order = @Shuffled()."
            )
        return request.indices


@configurable
@dataclass(frozen=True, kw_only=True)
class RandomWindows(Order):
    """Stretches that begin anywhere, drawn with replacement, as nanoGPT trains."""

    def count_rows(self, stream: TokenStream) -> int | None:
        _check_window(stream)
        return None

    def find_offsets(
        self, request: RowRequest, stream: TokenStream
    ) -> Int64[np.ndarray, " M"]:
        bound = stream.tokens - stream.sequence_length
        return randint(
            bound, request.seed, RandomStream.WINDOW, request.step, request.rows
        )


@configurable
@dataclass(frozen=True, kw_only=True)
class RandomOffset(Order):
    """Random windows that cover the stream evenly: each epoch begins at a random phase,
    and reads the whole windows from there on once, in an order of its own.
    """

    def count_rows(self, stream: TokenStream) -> int | None:
        """How many fit from any phase below the length of a window."""
        return self._count_windows(stream)

    def find_offsets(
        self, request: RowRequest, stream: TokenStream
    ) -> Int64[np.ndarray, " M"]:
        windows = self._count_windows(stream)
        epoch, place = np.divmod(request.indices, windows)
        phases = 1 + (stream.tokens - 1 - stream.sequence_length * windows)
        phase = randint(phases, request.seed, RandomStream.OFFSET, epoch)
        key = hash_u64(request.seed, RandomStream.SHUFFLE, epoch)
        return phase + permute(place, windows, key) * stream.sequence_length

    def _count_windows(self, stream: TokenStream) -> int:
        _check_window(stream)
        return max(
            (stream.tokens - stream.sequence_length) // stream.sequence_length, 1
        )


def _check_window(stream: TokenStream) -> None:
    """Refuses a stream in which not one window fits."""
    if stream.tokens <= stream.sequence_length:
        raise ConfigError(
            f"{stream.tokens} tokens hold no window of {stream.sequence_length} and its"
            f" next token: set length to {stream.tokens - 1} or less."
        )
