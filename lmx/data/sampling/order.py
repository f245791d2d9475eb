"""Orders in which the rows of a token stream are read."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from lmx.config.registry import ConfigError, configurable
from lmx.data.schedule import RowRequest
from lmx.data.stateless_random import RandomStream, hash_u64, permute, randint


class TokenStream(NamedTuple):
    """Size of a token stream and of its rows."""

    tokens: int
    sequence_length: int

    @property
    def rows(self) -> int:
        """Rows in which every token but the first is a target once."""
        return -(-(self.tokens - 1) // self.sequence_length)


class Order(ABC):
    """Maps a row request to offsets in a stream, as a pure function."""

    @abstractmethod
    def count_rows(self, stream: TokenStream) -> int | None:
        """Rows in one pass over the stream; None if there are no passes."""

    @abstractmethod
    def find_offsets(
        self, request: RowRequest, stream: TokenStream
    ) -> Int64[np.ndarray, " M"]:
        """The offset of the first token of each requested row."""


class RowOrder(Order):
    """An order of fixed rows. Rows of packed documents need one."""

    @abstractmethod
    def select_rows(self, request: RowRequest, count: int) -> Int64[np.ndarray, " M"]:
        """The index of each requested row, of `count`; `count` or more is padding."""

    def count_rows(self, stream: TokenStream) -> int | None:
        return stream.rows

    def find_offsets(
        self, request: RowRequest, stream: TokenStream
    ) -> Int64[np.ndarray, " M"]:
        return self.select_rows(request, stream.rows) * stream.sequence_length


@configurable
@dataclass(frozen=True, kw_only=True)
class Shuffled(RowOrder):
    """Every row once per epoch, in a new random order each epoch. No row is dropped.

    An epoch can end in the middle of a batch.
    """

    def select_rows(self, request: RowRequest, count: int) -> Int64[np.ndarray, " M"]:
        epoch, index = np.divmod(request.indices, count)
        key = hash_u64(request.seed, RandomStream.SHUFFLE, epoch)
        return permute(index, count, key)


@configurable
@dataclass(frozen=True, kw_only=True)
class Sequential(RowOrder):
    """One pass from the first row to the last. The last batch is padded.

    The seed has no effect.
    """

    def select_rows(self, request: RowRequest, count: int) -> Int64[np.ndarray, " M"]:
        if request.rows_before >= count:
            raise ConfigError(
                f"there is no batch {request.step} in sequential order:"
                f" {request.rows_before} rows come before it, and one pass has"
                f" {count}. For more than one pass set order = @Shuffled()."
            )
        return request.indices


@configurable
@dataclass(frozen=True, kw_only=True)
class RandomWindows(Order):
    """Windows at random offsets, drawn with replacement, as in nanoGPT."""

    def count_rows(self, stream: TokenStream) -> int | None:
        _check_window(stream)
        return None

    def find_offsets(
        self, request: RowRequest, stream: TokenStream
    ) -> Int64[np.ndarray, " M"]:
        bound = stream.tokens - stream.sequence_length
        stream_id = RandomStream.WINDOW
        return randint(bound, request.seed, stream_id, request.step, request.rows)


@configurable
@dataclass(frozen=True, kw_only=True)
class RandomOffset(Order):
    """Non-overlapping windows from a random offset, which is new in each epoch.

    The windows of an epoch come in random order, each once.
    """

    def count_rows(self, stream: TokenStream) -> int | None:
        """Windows that fit at any offset below the sequence length."""
        _check_window(stream)
        length = stream.sequence_length
        return max((stream.tokens - length) // length, 1)

    def find_offsets(
        self, request: RowRequest, stream: TokenStream
    ) -> Int64[np.ndarray, " M"]:
        windows = self.count_rows(stream) or 0
        epoch, index = np.divmod(request.indices, windows)
        bound = stream.tokens - stream.sequence_length * windows
        offset = randint(bound, request.seed, RandomStream.OFFSET, epoch)
        key = hash_u64(request.seed, RandomStream.SHUFFLE, epoch)
        return offset + permute(index, windows, key) * stream.sequence_length


def _check_window(stream: TokenStream) -> None:
    """Refuses a stream that is shorter than a window and its last target."""
    if stream.tokens <= stream.sequence_length:
        raise ConfigError(
            f"{stream.tokens} tokens are too few for a window of"
            f" {stream.sequence_length} and its next token: set sequence_length to"
            f" {stream.tokens - 1} or less."
        )
