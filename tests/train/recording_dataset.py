"""A dataset that records which rows each process requests."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lmx.config.registry import configurable
from lmx.core.batch import Batch
from lmx.data.dataset import DatasetWrapper, WrapperConfig


@configurable
@dataclass(frozen=True, kw_only=True)
class RecordingConfig(WrapperConfig):
    """A wrapped dataset; a line of `folder`/I for each request of process I."""

    folder: str

    def open(self) -> Any:
        return RecordingDataset(source=self.source.open(), folder=Path(self.folder))


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordingDataset(DatasetWrapper):
    """The rows of a dataset. Each request is recorded."""

    folder: Path

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        with (self.folder / str(jax.process_index())).open("a") as file:
            print(
                step,
                *rows.indices(self.info.schedule.stage_at(step).batch_size)[:2],
                file=file,
            )
        return self.source.batch_at(seed, step, rows)
