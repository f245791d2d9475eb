"""Rows whose documents are told in another way, with marks that need room."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from lmx.config.registry import ConfigError
from lmx.core.batch import Batch
from lmx.data.dataset import Dataset
from lmx.data.sampling.packing import DocumentSpan, empty_batch
from lmx.data.sampling.schedule import BatchSchedule, RowRequest
from lmx.data.sampling.source import DatasetWrapper, as_indexed, locate, schedule_of
from lmx.data.tokenizer.external import FileCodec


class WeightedTokens(NamedTuple):
    """Tokens of one document, or of a part of one, and what each counts as a target."""

    tokens: Int32[np.ndarray, " T"]
    weights: Float32[np.ndarray, " T"]

    def crop(self, begin: int, end: int) -> "WeightedTokens":
        """The tokens of [begin, end)."""
        return WeightedTokens(self.tokens[begin:end], self.weights[begin:end])


def make_sentinel(token: int, weight: float) -> WeightedTokens:
    """One token that is no text."""
    return WeightedTokens(np.array([token], np.int32), np.array([weight], np.float32))


def concat(*texts: WeightedTokens) -> WeightedTokens:
    """One after the other."""
    tokens, weights = zip(*texts, strict=True)
    return WeightedTokens(np.concatenate(tokens), np.concatenate(weights))


class RandomKey(NamedTuple):
    """Whose chance it is: no two texts of a run share it."""

    seed: int
    step: int
    row: int
    segment: int


@dataclass(frozen=True, kw_only=True, eq=False)
class DocumentTransform(DatasetWrapper):
    """The rows of a source, shorter by some room, each text told in another way.

    A text that its row has no room left to tell so stays as it is, so that nothing is
    ever cut off. What begins and what ends a document stay where they are.
    """

    @property
    def schedule(self) -> BatchSchedule:
        return schedule_of(self.source)

    @abstractmethod
    def source_length(self, length: int) -> int:
        """Tokens of the source that a row of so many may hold."""

    @abstractmethod
    def transform(self, text: WeightedTokens, key: RandomKey) -> WeightedTokens:
        """The text in another way; the same where chance, or its size, has it so."""

    def read(self, request: RowRequest) -> Batch:
        """Rows by their numbers."""
        inner = self.source_length(request.sequence_length)
        given = as_indexed(self.source).read(request._replace(length=inner))
        batch = empty_batch(len(request.rows), request.sequence_length)
        for index, row in enumerate(request.rows.tolist()):
            room, at = request.sequence_length - inner, 0
            for segment, text in enumerate(split_documents(given, index).values(), 1):
                new = self._within(
                    text, RandomKey(request.seed, request.step, row, segment)
                )
                if len(new.tokens) - len(text.tokens) > room:
                    new = text
                room -= len(new.tokens) - len(text.tokens)
                at = place(batch, index, at, new, segment)
        return batch

    def origins(self, wanted: RowRequest) -> list[DocumentSpan]:
        """The documents of those rows, of which nothing but single tokens is lost."""
        asked = wanted._replace(length=self.source_length(wanted.sequence_length))
        given = as_indexed(self.source).read(asked)
        told = {
            (row, old): new
            for index, row in enumerate(wanted.rows.tolist())
            for new, old in enumerate(split_documents(given, index), 1)
        }
        return [
            origin._replace(segment=told[origin[:2]])
            for origin in locate(self.source, asked)
            if origin[:2] in told
        ]

    def _within(self, text: WeightedTokens, at: RandomKey) -> WeightedTokens:
        """What is between begin and end, told in another way."""
        codec, size = self.source.tokenizer, len(text.tokens)
        begin, end = (None, None) if codec is None else (codec.bos, codec.eos)
        low = int(begin is not None and text.tokens[0] == begin)
        high = size - int(end is not None and text.tokens[-1] == end)
        new = self.transform(text.crop(low, high), at)
        return concat(text.crop(0, low), new, text.crop(high, size))


def split_documents(batch: Batch, row: int) -> dict[int, WeightedTokens]:
    """The texts of a row by segment, each with the last target if that is learned.

    One token alone, the end of a document that began in another row, is left out. The
    first token of a text counts as one that is learned, for where it comes to stand
    after another.
    """
    tokens, targets, weights, _, segments = (field[row] for field in batch)
    borders = np.flatnonzero(np.diff(segments, prepend=0, append=0)).tolist()
    found = {}
    for begin, after in zip(borders, borders[1:], strict=False):
        end = after - (weights[after - 1] == 0)  # of the targets that are of this text
        text = np.append(tokens[begin], targets[begin:end])
        if len(text) > 1:
            weight = np.append(np.float32(1), weights[begin:end])
            found[int(segments[begin])] = WeightedTokens(text, weight)
    return found


def place(batch: Batch, row: int, at: int, text: WeightedTokens, segment: int) -> int:
    """Puts a text in a row from `at` on; where the next one begins."""
    tokens, targets, weights, positions, segments = (field[row] for field in batch)
    size = len(text.tokens) - 1
    place = slice(at, at + size)
    tokens[place], targets[place] = text.tokens[:-1], text.tokens[1:]
    weights[place] = text.weights[1:]
    positions[place], segments[place] = np.arange(size), segment
    return at + size


def resolve_sentinels(
    rows: Dataset, names: tuple[str | int, ...] | None, count: int, label: str
) -> tuple[int, ...]:
    """The tokens of these names or numbers; None: so many above those of the source."""
    if names is None:
        return tuple(range(rows.vocab, rows.vocab + count))
    found, codec = [], rows.tokenizer
    for name in names:
        token: int | None = None
        if isinstance(name, int):
            token = name
        elif isinstance(codec, FileCodec):
            token = codec.token_to_id(name)
        if token is None or not 0 <= token < rows.vocab:
            raise ConfigError(
                f"{label} names {name!r}, which is no token of the source: name tokens"
                " that its tokenizer has, or leave the marks out for further tokens."
            )
        found.append(token)
    if len(set(found)) < len(found):
        raise ConfigError(f"{label} names a token twice: {names}.")
    return tuple(found)
