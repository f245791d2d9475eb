"""Datasets: batches of token sequences as a pure function of (seed, step)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from lmx.config.registry import require
from lmx.core.batch import AnyBatch, BatchSpec
from lmx.data.schedule import BatchSchedule, RowRequest
from lmx.data.tokenizer.base import Tokenizer

THREADS = 2  # NumPy holds the GIL for most of a batch: more threads do not help
BUFFER_SIZE = 4  # batches


class DocumentSpan(NamedTuple):
    """The part of a document that one segment of a row contains."""

    row: int  # of the batch
    segment: int  # of the row, as in `Batch.segments`
    source: str
    document: int | None  # index in the source; None if documents have no index
    offset: int | None  # of the segment's first token in the document
    length: int  # tokens of the document; inserted tokens do not count


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetInfo:
    """Properties of a dataset.

    Attributes:
        schedule: batch size and sequence length of every step.
        vocab: V, one more than the largest token.
        fingerprint: digests that are equal if and only if the batches are.
        tokenizer: maps tokens to text; None if the tokens are not text.
        steps: batches in one pass, rounded up; None if there is no such number.
    """

    schedule: BatchSchedule
    vocab: int
    fingerprint: Mapping[str, str]
    tokenizer: Tokenizer | None = None
    steps: int | None = None

    @property
    def token_bytes(self) -> Int32[np.ndarray, " V"] | None:
        """UTF-8 bytes of each token, 0 for special tokens; None without text."""
        if self.tokenizer is None:
            return None
        sizes = self.tokenizer.token_bytes
        return np.pad(sizes, (0, self.vocab - len(sizes)))


class Dataset(ABC):
    """An opened dataset: returns any batch of a run, in any order."""

    @property
    @abstractmethod
    def info(self) -> DatasetInfo:
        """Its schedule, vocabulary and fingerprint."""

    @abstractmethod
    def read(self, request: RowRequest) -> AnyBatch:
        """The requested rows."""

    def locate(self, request: RowRequest) -> list[DocumentSpan]:
        """The documents of the requested rows, sorted by row and segment.

        A dataset without document indices returns one span per segment, and one per row
        if its batches have no segments.
        """
        batch, name = self.read(request), type(self).__name__
        segments = getattr(batch, "segments", np.ones((len(request.rows), 1), np.int32))
        return [
            DocumentSpan(row, segment, name, None, None, count)
            for row, ids in zip(request.rows.tolist(), segments, strict=True)
            for segment, count in enumerate(np.bincount(ids).tolist())
            if segment and count
        ]

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> AnyBatch:
        """Rows of the batch of a step, whichever process reads the others."""
        return self.read(self.info.schedule.request(seed, step, rows))

    def locate_at(
        self, seed: int, step: int, rows: slice = slice(None)
    ) -> list[DocumentSpan]:
        return self.locate(self.info.schedule.request(seed, step, rows))


class RolloutDataset(Dataset):
    """A dataset whose batches depend on the parameters at their step.

    `read` returns what is known before, such as prompts, which is read ahead. A batch
    is a function of that, of the parameters and of random keys of the seed and the
    step, and of nothing else: so a run that resumes or is replayed makes it again. The
    fingerprint names all that `rollout` depends on, such as a temperature or a reward.
    """

    @abstractmethod
    def rollout(self, model: Any, batch: AnyBatch, keys: Any) -> AnyBatch:
        """The batch to train on, in the form that the dataset declares.

        `model` is the model before the step; `keys` has one random key per row. Called
        in all processes, with the sharded arrays of `read`.
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetWrapper(Dataset):
    """A dataset that reads another one. Subclasses override what differs."""

    source: Dataset

    def __post_init__(self):
        refuse_rollouts(self.source, type(self).__name__)

    @property
    def info(self) -> DatasetInfo:
        return self.source.info

    def read(self, request: RowRequest) -> AnyBatch:
        return self.source.read(request)

    def locate(self, request: RowRequest) -> list[DocumentSpan]:
        return self.source.locate(request)


class DatasetConfig(ABC):
    """Configuration of a dataset."""

    @property
    @abstractmethod
    def schedule(self) -> BatchSchedule:
        """Batch size and sequence length of every step."""

    @property
    def spec(self) -> BatchSpec:
        """What its batches are."""
        return BatchSpec()

    @abstractmethod
    def open(self) -> Dataset:
        """Opens the dataset."""


@dataclass(frozen=True, kw_only=True)
class WrapperConfig(DatasetConfig):
    """Configuration of a dataset that reads another one, with its schedule."""

    source: DatasetConfig

    @property
    def schedule(self) -> BatchSchedule:
        return self.source.schedule

    @property
    def spec(self) -> BatchSpec:
        return self.source.spec


def refuse_rollouts(data: Dataset, owner: str) -> None:
    """Refuses a dataset whose batches depend on the parameters."""
    require(
        not isinstance(data, RolloutDataset),
        f"the batches of {type(data).__name__} depend on the parameters, which {owner}"
        " does not have: use it as Experiment.data alone.",
    )


def require_text(config: DatasetConfig, owner: str) -> None:
    """Refuses a dataset whose batches are not `Batch`, which the owner writes."""
    require(
        config.spec == BatchSpec(),
        f"the batches of {type(config).__name__} are {config.spec.kind.__name__}, and"
        f" {owner} reads and makes Batch: use the dataset without it.",
    )


def prefetch(
    batch_at: Callable[[int], AnyBatch], start: int, stop: int
) -> Generator[AnyBatch, None, None]:
    """Yields `batch_at` of each step in [start, stop), computed in other threads.

    An exception in `batch_at` is raised at its step. The threads stop when the iterator
    is exhausted, closed or left by an exception.
    """
    import grain

    if start >= stop:
        return
    steps = grain.MapDataset.range(start, stop).map(batch_at)
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=BUFFER_SIZE)
    batches = iter(steps.to_iter_dataset(options))
    try:
        yield from batches
    finally:
        batches.close()
