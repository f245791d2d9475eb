"""Rows of a token store that `lmx data build` has made: all of it, or one source."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmx.config.names import ConfigError, Execution, configurable, hint
from lmx.data.batches import Source, TokenRows
from lmx.data.rows.order import Order, Shuffled
from lmx.data.rows.packing import Concatenate, Packing
from lmx.data.rows.schedule import Course, Stepwise
from lmx.data.store import plan
from lmx.data.store.store import Store, codec_of, open_folder


@configurable
@dataclass(frozen=True, kw_only=True)
class Stored(Source):
    """A token store, or one source of it, read as rows of tokens.

    Where it lies changes nothing; the card of a run has its digests.

    Attributes:
        source: its name in the store; None: all of them, in the order of the store.
        batch: B, rows over all devices.
        length: T, tokens of a row. Each length is packed by itself, and its rows are
            numbered through: those of another length are read as if it were not there.
    """

    path: Execution[str]
    source: str | None = None
    batch: int | Stepwise
    length: int | Stepwise
    order: Order = Shuffled()
    packing: Packing = Concatenate()

    def __post_init__(self):
        Course.of("Stored", self.batch, self.length)

    def open(self) -> TokenRows:
        """Maps the store into memory, once its tokenizer is known to be its own."""
        folder = Path(self.path).expanduser()
        store, codec = open_folder(folder), codec_of(folder)
        if self.source is not None:
            store = of_source(store, folder, self.source)
        if store.size < 2:
            raise ConfigError(
                f"{folder} has {store.size} tokens, which predict nothing: build it of"
                " more text."
            )
        return TokenRows(
            store=store,
            tokenizer=codec,
            order=self.order,
            packing=self.packing,
            course=Course.of("Stored", self.batch, self.length),
        )


def of_source(store: Store, folder: Path, name: str) -> Store:
    """The documents of one source, as a store. Takes 8 bytes of memory a document."""
    if name not in store.sources:
        known = hint(name, store.sources)
        raise ConfigError(f"the store in {folder} has no source {name!r}{known}.")
    records = plan.records(folder)
    numbers = [n for n, record in enumerate(records) if record["source"] == name]
    sizes = [store.borders[n + 1] - store.borders[n] for n in numbers]
    lengths = [
        np.diff(store.starts[some.start : some.stop + 1])
        for some in store.sources[name]
    ]
    starts = np.concatenate([np.zeros(1, np.int64), *lengths]).cumsum()
    return dataclasses.replace(
        store,
        parts=Chosen(store.parts, numbers),
        borders=np.cumsum([0, *sizes], dtype=np.int64),
        starts=starts,
        bytes=sum(records[n]["bytes"] for n in numbers),
        fingerprint={**store.fingerprint, "source": name},
        sources={name: (range(len(starts) - 1),)},
    )


@dataclass(frozen=True, eq=False)
class Chosen(Sequence[np.ndarray]):
    """Some of the parts of a store."""

    parts: Sequence[np.ndarray]
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: Any) -> Any:
        return self.parts[self.numbers[number]]
