"""What every made language has: rows out of nothing but a seed, and a known optimum."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int64

from lmx.config.registry import ConfigError
from lmx.data.dataset import Batch, DatasetConfig


@dataclass(frozen=True, kw_only=True)
class SyntheticDataset(DatasetConfig):
    """A language that is made as it is read, so that what can be learned is known.

    A row is one document, and no row is like another. The `vocab` is a field or a
    property of each language.
    """

    batch_size: int  # B, rows over all devices
    sequence_length: int  # T, tokens

    steps: ClassVar[None] = None
    tokenizer: ClassVar[None] = None
    token_bytes: ClassVar[None] = None

    def __post_init__(self):
        self.require_at_least(batch_size=1, sequence_length=1)

    @property
    @abstractmethod
    def entropy(self) -> float:
        """Nats per weighted target that the best of all models loses, exactly."""

    @abstractmethod
    def generate(
        self, seed: int, step: int, row: Int64[np.ndarray, "B 1"]
    ) -> tuple[Int64[np.ndarray, "B _"], Bool[np.ndarray, "#B _"]]:
        """One token more than T for each row, and which of them can be told from those
        before them: only these are targets. What is more is cut off."""

    def open(self) -> "SyntheticDataset":
        """Itself: there is nothing to read."""
        return self

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return {"source": f"{self}"}

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        """Those rows of the batch of that step: a pure function of its arguments."""
        row = np.arange(self.batch_size)[rows][:, None]
        tokens, told = self.generate(seed, step, row)
        shape = (len(row), self.sequence_length)
        index = np.arange(self.sequence_length, dtype=np.int32)
        weights = np.broadcast_to(told[:, 1 : self.sequence_length + 1], shape)
        return Batch(
            tokens=tokens[:, : self.sequence_length].astype(np.int32),
            targets=tokens[:, 1 : self.sequence_length + 1].astype(np.int32),
            weights=weights.astype(np.float32),
            positions=np.tile(index, (len(row), 1)),
            segments=np.ones(shape, np.int32),
        )

    def require_at_least(self, **least: int) -> None:
        """Refuses a field that is less than that."""
        for name, bound in least.items():
            if (given := getattr(self, name)) < bound:
                raise ConfigError(
                    f"{type(self).__name__}.{name} is {given}: at least {bound}."
                )
