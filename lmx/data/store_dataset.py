"""Dataset over a token store written by `lmx data build`, or over one source of it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmx.config.registry import ConfigError, Execution, configurable, suggest
from lmx.data.store.store import (
    Store,
    load_store_tokenizer,
    open_store,
    read_manifest,
)
from lmx.data.text_dataset import PackedDataset
from lmx.data.tokenizer.base import Tokenizer


@configurable
@dataclass(frozen=True, kw_only=True)
class TokenStoreDataset(PackedDataset):
    """A token store, or one source of it.

    The path is not part of a run's identity: the digests in the run metadata are.

    Attributes:
        source: name of a source in the store; None: all sources, in their stored order.
    """

    path: Execution[str]
    source: str | None = None

    def open_store(self) -> tuple[Store, Tokenizer]:
        """Maps the store into memory, after it has verified its tokenizer."""
        folder = Path(self.path).expanduser()
        store, tokenizer = open_store(folder), load_store_tokenizer(folder)
        if self.source is not None:
            store = select_source(store, folder, self.source)
        return store, tokenizer


def select_source(store: Store, folder: Path, name: str) -> Store:
    """A store with the documents of one source. Needs 8 bytes of memory a document."""
    if name not in store.sources:
        hint = suggest(name, store.sources)
        raise ConfigError(f"the store in {folder} has no source {name!r}{hint}.")
    shards = read_manifest(folder)["shards"]
    numbers = [n for n, shard in enumerate(shards) if shard["source"] == name]
    sizes = np.diff(store.part_offsets)[numbers]
    lengths = [
        np.diff(store.starts[documents.start : documents.stop + 1])
        for documents in store.sources[name]
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
