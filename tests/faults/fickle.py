"""Data that are others in each process, as no source may be."""

import os
from dataclasses import dataclass
from typing import Any

from lmx.config.registry import configurable
from lmx.data.dataset import Batch, Dataset, DatasetConfig


@configurable
@dataclass(frozen=True, kw_only=True)
class Fickle(DatasetConfig):
    """Another source, read with a seed that each process makes up."""

    source: DatasetConfig

    def open(self) -> Any:
        return Moody(self.source.open())


class Moody:
    """The rows of an opened source."""

    def __init__(self, rows: Dataset):
        self.rows = rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rows, name)

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        return self.rows.batch_at(seed + os.getpid(), step, rows)
