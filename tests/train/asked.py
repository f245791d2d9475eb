"""Data that remember, process by process, which rows were asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lmx.config.names import configurable
from lmx.data.batches import Batch, Rows, Source


@configurable
@dataclass(frozen=True, kw_only=True)
class Asked(Source):
    """Another source; a line of `folder`/I for each question of process I."""

    source: Source
    folder: str

    def open(self) -> Any:
        return Heard(self.source.open(), Path(self.folder))


class Heard:
    """The rows of an opened source."""

    def __init__(self, rows: Rows, folder: Path):
        self.rows, self.folder = rows, folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rows, name)

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        with (self.folder / str(jax.process_index())).open("a") as file:
            print(step, *rows.indices(self.rows.batch)[:2], file=file)
        return self.rows.batch_at(seed, step, rows)
