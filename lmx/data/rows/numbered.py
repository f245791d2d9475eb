"""Rows by their numbers, for sources that choose among or change those of others."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from lmx.config.names import ConfigError
from lmx.core.batch import Batch
from lmx.data.batches import Rows
from lmx.data.rows.packing import Origin, padding
from lmx.data.rows.schedule import Course, Stage, Wanted
from lmx.data.tokenizers.codec import Codec


@runtime_checkable
class Numbered(Rows, Protocol):
    """An opened source that can give any of its rows, in shapes that it knows."""

    @property
    def course(self) -> Course:
        """The shape of every step."""
        ...

    def read(self, wanted: Wanted) -> Batch:
        """Rows by their numbers."""
        ...


def numbered(rows: Rows) -> Numbered:
    """The opened source as one whose rows have numbers."""
    return rows if isinstance(rows, Numbered) else ByStep(rows=rows)


def course_of(rows: Rows) -> Course:
    """The shape of every step of an opened source."""
    return numbered(rows).course


@runtime_checkable
class Traced(Protocol):
    """An opened source that knows whose documents its rows tell."""

    def origins(self, wanted: Wanted) -> list[Origin]:
        """The documents of rows by their numbers, row by row from left to right."""
        ...


def documents(
    data: Rows, seed: int, step: int, rows: slice = slice(None)
) -> list[Origin]:
    """Whose documents these rows of the batch of that step tell: of each row and
    segment, the source, the document, where it begins and how many tokens it has.

    Of a source that numbers no documents, as the made languages, the segments alone.
    """
    return origins(data, course_of(data).wanted(seed, step, rows))


def origins(rows: Rows, wanted: Wanted) -> list[Origin]:
    """The documents of rows by their numbers, from whatever source."""
    if isinstance(rows, Traced):
        return rows.origins(wanted)
    name = type(rows.rows if isinstance(rows, ByStep) else rows).__name__
    return [
        Origin(row, segment, name, None, None, int(count))
        for row, here in zip(
            wanted.rows.tolist(), numbered(rows).read(wanted).segments, strict=True
        )
        for segment, count in enumerate(np.bincount(here).tolist())
        if segment and count
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Over(ABC):
    """Rows made of the rows of another source; what is not said here is as it is there.

    Attributes:
        added: how many tokens there are above those of the source, none of them text.
    """

    rows: Rows
    added: int = 0

    @property
    @abstractmethod
    def course(self) -> Course:
        """The shape of every step."""

    @abstractmethod
    def read(self, wanted: Wanted) -> Batch:
        """Rows by their numbers."""

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        """Those rows of the batch of that step: a pure function of its arguments."""
        return self.read(self.course.wanted(seed, step, rows))

    @property
    def batch(self) -> int:
        return self.course.at(0).batch

    @property
    def length(self) -> int:
        return self.course.at(0).length

    @property
    def vocab(self) -> int:
        return self.rows.vocab + self.added

    @property
    def steps(self) -> int | None:
        return self.rows.steps

    @property
    def tokenizer(self) -> Codec | None:
        """That of the text, which has none of the added tokens."""
        return self.rows.tokenizer

    @property
    def token_bytes(self) -> Int32[np.ndarray, " V"] | None:
        sizes = self.rows.token_bytes
        return None if sizes is None else np.pad(sizes, (0, self.added))

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return self.rows.fingerprint


@dataclass(frozen=True, kw_only=True, eq=False)
class ByStep(Over):
    """A source of steps alike, its rows numbered from the first of step 0 on."""

    @property
    def course(self) -> Course:
        return Course((Stage(0, self.rows.batch, self.rows.length),))

    def read(self, wanted: Wanted) -> Batch:
        if wanted.length != self.rows.length:
            raise ConfigError(
                f"{type(self.rows).__name__} has rows of {self.rows.length} tokens and"
                f" is asked for rows of {wanted.length}: nothing that needs room in a"
                " row, and no schedule of lengths, can be laid over it."
            )
        steps, places = np.divmod(wanted.numbers, self.rows.batch)
        batch = padding(len(places), wanted.length)
        for step in np.unique(steps).tolist():
            here = steps == step
            low, high = places[here].min(), places[here].max() + 1
            part = self.rows.batch_at(wanted.seed, step, slice(int(low), int(high)))
            for field, given in zip(batch, part, strict=True):
                field[here] = given[places[here] - low]
        return batch
