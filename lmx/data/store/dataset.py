"""Rows of a token store that `lmx data build` has made: all of it, or one source."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmx.config.registry import ConfigError, Execution, configurable, suggest
from lmx.data.dataset import DatasetConfig, TokenDataset
from lmx.data.sampling.order import Order, Shuffled
from lmx.data.sampling.packing import ConcatAndSplit, Packing
from lmx.data.sampling.schedule import BatchSchedule, PiecewiseConstant
from lmx.data.store.store import (
    Store,
    load_store_tokenizer,
    open_store,
    read_manifest,
)


@configurable
@dataclass(frozen=True, kw_only=True)
class TokenStoreDataset(DatasetConfig):
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
    batch_size: int | PiecewiseConstant
    sequence_length: int | PiecewiseConstant
    order: Order = Shuffled()
    packing: Packing = ConcatAndSplit()

    def __post_init__(self):
        BatchSchedule.build("Stored", self.batch_size, self.sequence_length)

    def open(self) -> TokenDataset:
        """Maps the store into memory, once its tokenizer is known to be its own."""
        folder = Path(self.path).expanduser()
        store, codec = open_store(folder), load_store_tokenizer(folder)
        if self.source is not None:
            store = select_source(store, folder, self.source)
        if store.size < 2:
            raise ConfigError(
                f"{folder} has {store.size} tokens, which predict nothing: build it of"
                " more text."
            )
        return TokenDataset(
            store=store,
            tokenizer=codec,
            order=self.order,
            packing=self.packing,
            schedule=BatchSchedule.build(
                "Stored", self.batch_size, self.sequence_length
            ),
        )


def select_source(store: Store, folder: Path, name: str) -> Store:
    """The documents of one source, as a store. Takes 8 bytes of memory a document."""
    if name not in store.sources:
        known = suggest(name, store.sources)
        raise ConfigError(f"the store in {folder} has no source {name!r}{known}.")
    shards = read_manifest(folder)["shards"]
    numbers = [n for n, shard in enumerate(shards) if shard["source"] == name]
    sizes = [store.part_offsets[n + 1] - store.part_offsets[n] for n in numbers]
    lengths = [
        np.diff(store.starts[some.start : some.stop + 1])
        for some in store.sources[name]
    ]
    starts = np.concatenate([np.zeros(1, np.int64), *lengths]).cumsum()
    return dataclasses.replace(
        store,
        parts=SubsetParts(store.parts, numbers),
        part_offsets=np.cumsum([0, *sizes], dtype=np.int64),
        starts=starts,
        bytes=sum(shards[n]["bytes"] for n in numbers),
        fingerprint={**store.fingerprint, "source": name},
        sources={name: (range(len(starts) - 1),)},
    )


@dataclass(frozen=True, eq=False)
class SubsetParts(Sequence[np.ndarray]):
    """Some of the parts of a store."""

    parts: Sequence[np.ndarray]
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: Any) -> Any:
        return self.parts[self.numbers[number]]
