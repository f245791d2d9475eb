"""Base class of synthetic datasets: generated rows with a known optimal loss."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int64

from lmx.config.registry import Positive, require
from lmx.core.batch import Batch
from lmx.data.dataset import Dataset, DatasetConfig, DatasetInfo
from lmx.data.schedule import BatchSchedule, RowRequest

Column = Int64[np.ndarray, "B 1"]
Generated = tuple[Int64[np.ndarray, "B _"], Bool[np.ndarray, "#B _"]]


@dataclass(frozen=True, kw_only=True)
class SyntheticDataset(DatasetConfig, Dataset):
    """A language that is generated while it is read, so that its entropy is known.

    A row is one document, and each row is new. Subclasses have `vocab` as a field or a
    property.
    """

    batch_size: Positive[int]  # B, rows over all devices
    sequence_length: Positive[int]  # T, tokens

    if TYPE_CHECKING:

        @property
        def vocab(self) -> int: ...

    @property
    @abstractmethod
    def entropy(self) -> float:
        """Nats per weighted target of an optimal model, exactly."""

    @abstractmethod
    def generate(self, seed: int, step: Column, row: Column) -> Generated:
        """At least T + 1 tokens of each row, and which of them are targets: those that
        can be predicted from the tokens before them. The rest is cut off."""

    @property
    def schedule(self) -> BatchSchedule:
        name = type(self).__name__
        return BatchSchedule.build(name, self.batch_size, self.sequence_length)

    @property
    def info(self) -> DatasetInfo:
        return DatasetInfo(
            schedule=self.schedule,
            vocab=self.vocab,
            fingerprint={"source": f"{self}"},
        )

    def open(self) -> Dataset:
        return self

    def read(self, request: RowRequest) -> Batch:
        T = self.sequence_length
        require(
            request.sequence_length == T,
            f"{type(self).__name__} has rows of {T} tokens, and rows of"
            f" {request.sequence_length} are requested: a transform that reserves"
            " tokens and a schedule of lengths need a dataset of documents.",
        )
        step, row = np.divmod(request.indices[:, None], self.batch_size)
        tokens, is_target = self.generate(request.seed, step, row)
        shape = (len(row), T)
        return Batch(
            tokens=tokens[:, :T].astype(np.int32),
            targets=tokens[:, 1 : T + 1].astype(np.int32),
            weights=np.broadcast_to(is_target[:, 1 : T + 1], shape).astype(np.float32),
            positions=np.tile(np.arange(T, dtype=np.int32), (len(row), 1)),
            segments=np.ones(shape, np.int32),
        )
