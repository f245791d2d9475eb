"""Rows by their numbers, for sources that choose among or change those of others."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from lmx.config.registry import ConfigError
from lmx.core.batch import Batch
from lmx.data.dataset import Dataset
from lmx.data.sampling.packing import DocumentSpan, empty_batch
from lmx.data.sampling.schedule import BatchSchedule, RowRequest, Stage
from lmx.data.tokenizer.base import Tokenizer


@runtime_checkable
class IndexedDataset(Dataset, Protocol):
    """An opened source that can give any of its rows, in shapes that it knows."""

    @property
    def schedule(self) -> BatchSchedule:
        """The shape of every step."""
        ...

    def read(self, request: RowRequest) -> Batch:
        """Rows by their numbers."""
        ...


def as_indexed(rows: Dataset) -> IndexedDataset:
    """The opened source as one whose rows have numbers."""
    return rows if isinstance(rows, IndexedDataset) else StepDataset(source=rows)


def schedule_of(rows: Dataset) -> BatchSchedule:
    """The shape of every step of an opened source."""
    return as_indexed(rows).schedule


@runtime_checkable
class HasDocuments(Protocol):
    """An opened source that knows whose documents its rows tell."""

    def locate(self, request: RowRequest) -> list[DocumentSpan]:
        """The documents of rows by their numbers, row by row from left to right."""
        ...


def locate_documents(
    data: Dataset, seed: int, step: int, rows: slice = slice(None)
) -> list[DocumentSpan]:
    """Whose documents these rows of the batch of that step tell: of each row and
    segment, the source, the document, where it begins and how many tokens it has.

    Of a source that numbers no documents, as the made languages, the segments alone.
    """
    return locate(data, schedule_of(data).request(seed, step, rows))


def locate(rows: Dataset, wanted: RowRequest) -> list[DocumentSpan]:
    """The documents of rows by their numbers, from whatever source."""
    if isinstance(rows, HasDocuments):
        return rows.locate(wanted)
    name = type(rows.source if isinstance(rows, StepDataset) else rows).__name__
    return [
        DocumentSpan(row, segment, name, None, None, int(count))
        for row, here in zip(
            wanted.rows.tolist(), as_indexed(rows).read(wanted).segments, strict=True
        )
        for segment, count in enumerate(np.bincount(here).tolist())
        if segment and count
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetWrapper(ABC):
    """Rows made of the rows of another source; what is not said here is as it is there.

    Attributes:
        added: how many tokens there are above those of the source, none of them text.
    """

    source: Dataset
    added_tokens: int = 0

    @property
    @abstractmethod
    def schedule(self) -> BatchSchedule:
        """The shape of every step."""

    @abstractmethod
    def read(self, request: RowRequest) -> Batch:
        """Rows by their numbers."""

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        """Those rows of the batch of that step: a pure function of its arguments."""
        return self.read(self.schedule.request(seed, step, rows))

    @property
    def batch_size(self) -> int:
        return self.schedule.stage_at(0).batch_size

    @property
    def sequence_length(self) -> int:
        return self.schedule.stage_at(0).sequence_length

    @property
    def vocab(self) -> int:
        return self.source.vocab + self.added_tokens

    @property
    def steps(self) -> int | None:
        return self.source.steps

    @property
    def tokenizer(self) -> Tokenizer | None:
        """That of the text, which has none of the added tokens."""
        return self.source.tokenizer

    @property
    def token_bytes(self) -> Int32[np.ndarray, " V"] | None:
        sizes = self.source.token_bytes
        return None if sizes is None else np.pad(sizes, (0, self.added_tokens))

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return self.source.fingerprint


@dataclass(frozen=True, kw_only=True, eq=False)
class StepDataset(DatasetWrapper):
    """A source of steps alike, its rows numbered from the first of step 0 on."""

    @property
    def schedule(self) -> BatchSchedule:
        return BatchSchedule(
            (Stage(0, self.source.batch_size, self.source.sequence_length),)
        )

    def read(self, request: RowRequest) -> Batch:
        if request.sequence_length != self.source.sequence_length:
            raise ConfigError(
                f"{type(self.source).__name__} has rows of {self.source.sequence_length} tokens and"
                f" is asked for rows of {request.sequence_length}: nothing that needs room in a"
                " row, and no schedule of lengths, can be laid over it."
            )
        steps, places = np.divmod(request.indices, self.source.batch_size)
        batch = empty_batch(len(places), request.sequence_length)
        for step in np.unique(steps).tolist():
            here = steps == step
            low, high = places[here].min(), places[here].max() + 1
            part = self.source.batch_at(request.seed, step, slice(int(low), int(high)))
            for field, given in zip(batch, part, strict=True):
                field[here] = given[places[here] - low]
        return batch
