"""Data that remember, process by process, which rows were asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lmx.config.registry import configurable
from lmx.data.dataset import Batch, Dataset, DatasetConfig


@configurable
@dataclass(frozen=True, kw_only=True)
class RecordingConfig(DatasetConfig):
    """Another source; a line of `folder`/I for each question of process I."""

    source: DatasetConfig
    folder: str

    def open(self) -> Any:
        return RecordingDataset(self.source.open(), Path(self.folder))


class RecordingDataset:
    """The rows of an opened source."""

    def __init__(self, rows: Dataset, folder: Path):
        self.rows, self.folder = rows, folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rows, name)

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        with (self.folder / str(jax.process_index())).open("a") as file:
            print(step, *rows.indices(self.rows.batch_size)[:2], file=file)
        return self.rows.batch_at(seed, step, rows)
