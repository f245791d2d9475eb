"""Rows whose documents are told in another way, with marks that need room."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from lmx.config.names import ConfigError
from lmx.core.batch import Batch
from lmx.data.batches import Rows
from lmx.data.rows.numbered import Over, course_of, numbered, origins
from lmx.data.rows.packing import Origin, padding
from lmx.data.rows.schedule import Course, Wanted
from lmx.data.tokenizers.file import FileCodec


class Text(NamedTuple):
    """Tokens of one document, or of a part of one, and what each counts as a target."""

    tokens: Int32[np.ndarray, " T"]
    weights: Float32[np.ndarray, " T"]

    def part(self, begin: int, end: int) -> "Text":
        """The tokens of [begin, end)."""
        return Text(self.tokens[begin:end], self.weights[begin:end])


def mark(token: int, weight: float) -> Text:
    """One token that is no text."""
    return Text(np.array([token], np.int32), np.array([weight], np.float32))


def joined(*texts: Text) -> Text:
    """One after the other."""
    tokens, weights = zip(*texts, strict=True)
    return Text(np.concatenate(tokens), np.concatenate(weights))


class At(NamedTuple):
    """Whose chance it is: no two texts of a run share it."""

    seed: int
    step: int
    row: int
    segment: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Rewritten(Over):
    """The rows of a source, shorter by some room, each text told in another way.

    A text that its row has no room left to tell so stays as it is, so that nothing is
    ever cut off. What begins and what ends a document stay where they are.
    """

    @property
    def course(self) -> Course:
        return course_of(self.rows)

    @abstractmethod
    def inner(self, length: int) -> int:
        """Tokens of the source that a row of so many may hold."""

    @abstractmethod
    def told(self, text: Text, at: At) -> Text:
        """The text in another way; the same where chance, or its size, has it so."""

    def read(self, wanted: Wanted) -> Batch:
        """Rows by their numbers."""
        inner = self.inner(wanted.length)
        given = numbered(self.rows).read(wanted._replace(length=inner))
        batch = padding(len(wanted.rows), wanted.length)
        for index, row in enumerate(wanted.rows.tolist()):
            room, at = wanted.length - inner, 0
            for segment, text in enumerate(texts(given, index).values(), 1):
                new = self._within(text, At(wanted.seed, wanted.step, row, segment))
                if len(new.tokens) - len(text.tokens) > room:
                    new = text
                room -= len(new.tokens) - len(text.tokens)
                at = lay(batch, index, at, new, segment)
        return batch

    def origins(self, wanted: Wanted) -> list[Origin]:
        """The documents of those rows, of which nothing but single tokens is lost."""
        asked = wanted._replace(length=self.inner(wanted.length))
        given = numbered(self.rows).read(asked)
        told = {
            (row, old): new
            for index, row in enumerate(wanted.rows.tolist())
            for new, old in enumerate(texts(given, index), 1)
        }
        return [
            origin._replace(segment=told[origin[:2]])
            for origin in origins(self.rows, asked)
            if origin[:2] in told
        ]

    def _within(self, text: Text, at: At) -> Text:
        """What is between begin and end, told in another way."""
        codec, size = self.rows.tokenizer, len(text.tokens)
        begin, end = (None, None) if codec is None else (codec.begin, codec.end)
        low = int(begin is not None and text.tokens[0] == begin)
        high = size - int(end is not None and text.tokens[-1] == end)
        new = self.told(text.part(low, high), at)
        return joined(text.part(0, low), new, text.part(high, size))


def texts(batch: Batch, row: int) -> dict[int, Text]:
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
            found[int(segments[begin])] = Text(text, weight)
    return found


def lay(batch: Batch, row: int, at: int, text: Text, segment: int) -> int:
    """Puts a text in a row from `at` on; where the next one begins."""
    tokens, targets, weights, positions, segments = (field[row] for field in batch)
    size = len(text.tokens) - 1
    place = slice(at, at + size)
    tokens[place], targets[place] = text.tokens[:-1], text.tokens[1:]
    weights[place] = text.weights[1:]
    positions[place], segments[place] = np.arange(size), segment
    return at + size


def marked(
    rows: Rows, names: tuple[str | int, ...] | None, count: int, label: str
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
            token = codec.token(name)
        if token is None or not 0 <= token < rows.vocab:
            raise ConfigError(
                f"{label} names {name!r}, which is no token of the source: name tokens"
                " that its tokenizer has, or leave the marks out for further tokens."
            )
        found.append(token)
    if len(set(found)) < len(found):
        raise ConfigError(f"{label} names a token twice: {names}.")
    return tuple(found)
