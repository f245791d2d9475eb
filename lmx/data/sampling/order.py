"""Orders in which the rows of a token stream are read."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from lmx.config.registry import configurable, require
from lmx.data.schedule import RowRequest
from lmx.data.stateless_random import RandomStream, hash_u64, permute, randint

Rows = Int64[np.ndarray, " M"]  # one number for each requested row


class Order(ABC):
    """Maps a row request to offsets in a stream, as a pure function."""

    @abstractmethod
    def count_rows(self, tokens: int, length: int) -> int | None:
        """Rows of a length in one pass over that many tokens; None: no passes."""

    @abstractmethod
    def find_offsets(self, request: RowRequest, tokens: int) -> Rows:
        """The offset of the first token of each requested row of a stream."""


class RowOrder(Order):
    """An order of fixed rows. Rows of packed documents need one."""

    @abstractmethod
    def select_rows(self, request: RowRequest, count: int) -> Rows:
        """The index of each requested row, of `count`; `count` or more is padding."""

    def count_rows(self, tokens: int, length: int) -> int:
        return -(-(tokens - 1) // length)  # all tokens but the first are targets once

    def find_offsets(self, request: RowRequest, tokens: int) -> Rows:
        length = request.sequence_length
        return self.select_rows(request, self.count_rows(tokens, length)) * length


@configurable
@dataclass(frozen=True, kw_only=True)
class Shuffled(RowOrder):
    """Every row once per epoch, in a new random order each epoch. No row is dropped.

    An epoch can end in the middle of a batch.
    """

    def select_rows(self, request: RowRequest, count: int) -> Rows:
        epoch, index = np.divmod(request.indices, count)
        key = hash_u64(request.seed, RandomStream.SHUFFLE, epoch)
        return permute(index, count, key)


@configurable
@dataclass(frozen=True, kw_only=True)
class Sequential(RowOrder):
    """One pass from the first row to the last. The last batch is padded.

    The seed has no effect.
    """

    def select_rows(self, request: RowRequest, count: int) -> Rows:
        require(
            request.rows_before < count,
            f"there is no batch {request.step} in sequential order:"
            f" {request.rows_before} rows come before it, and one pass has"
            f" {count}. For more than one pass set order = @Shuffled().",
        )
        return request.indices


@configurable
@dataclass(frozen=True, kw_only=True)
class RandomWindows(Order):
    """Windows at random offsets, drawn with replacement, as in nanoGPT."""

    def count_rows(self, tokens: int, length: int) -> int | None:
        _check_window(tokens, length)
        return None

    def find_offsets(self, request: RowRequest, tokens: int) -> Rows:
        bound, stream = tokens - request.sequence_length, RandomStream.WINDOW
        return randint(bound, request.seed, stream, request.step, request.rows)


@configurable
@dataclass(frozen=True, kw_only=True)
class RandomOffset(Order):
    """Non-overlapping windows from a random offset, which is new in each epoch.

    The windows of an epoch come in random order, each once.
    """

    def count_rows(self, tokens: int, length: int) -> int:
        """Windows that fit at any offset below the sequence length."""
        _check_window(tokens, length)
        return max((tokens - length) // length, 1)

    def find_offsets(self, request: RowRequest, tokens: int) -> Rows:
        length = request.sequence_length
        windows = self.count_rows(tokens, length)
        epoch, index = np.divmod(request.indices, windows)
        bound = tokens - length * windows
        offset = randint(bound, request.seed, RandomStream.OFFSET, epoch)
        key = hash_u64(request.seed, RandomStream.SHUFFLE, epoch)
        return offset + permute(index, windows, key) * length


def _check_window(tokens: int, length: int) -> None:
    """Refuses a stream that is shorter than a window and its last target."""
    require(
        tokens > length,
        f"{tokens} tokens are too few for a window of {length} and its next token:"
        f" set sequence_length to {tokens - 1} or less.",
    )
