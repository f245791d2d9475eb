"""Data that are others in each process, as no source may be."""

import os
from dataclasses import dataclass
from typing import Any

from lmx.config.registry import configurable
from lmx.core.batch import Batch
from lmx.data.dataset import DatasetWrapper, WrapperConfig


@configurable
@dataclass(frozen=True, kw_only=True)
class Fickle(WrapperConfig):
    """Another source, read with a seed that each process makes up."""

    def open(self) -> Any:
        return Moody(source=self.source.open())


@dataclass(frozen=True, kw_only=True, eq=False)
class Moody(DatasetWrapper):
    """The rows of a dataset, read with another seed in each process."""

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        return self.source.batch_at(seed + os.getpid(), step, rows)
