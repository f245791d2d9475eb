"""Datasets of tokenized text: a corpus, or a token store, packed into sequences."""

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from lmx.config.registry import (
    Execution,
    Positive,
    configurable,
    require,
    suggest,
)
from lmx.core.batch import Batch
from lmx.data.corpus.corpus import Corpus, Split
from lmx.data.dataset import Dataset, DatasetConfig, DatasetInfo, DocumentSpan
from lmx.data.sampling.order import Order, Shuffled
from lmx.data.sampling.packing import (
    ConcatAndSplit,
    PackedDocuments,
    Packing,
    fill_batch,
)
from lmx.data.schedule import BatchSchedule, PiecewiseConstant, RowRequest
from lmx.data.store.build import open_cached_store
from lmx.data.store.store import (
    MappedShards,
    Store,
    load_store_tokenizer,
    open_store,
    read_manifest,
)
from lmx.data.tokenizer.base import Tokenizer, TokenizerConfig


@dataclass(frozen=True, kw_only=True)
class PackedDataset(DatasetConfig):
    """Tokenized documents, packed into sequences of fixed length.

    Attributes:
        batch_size: B, rows over all devices.
        sequence_length: T, tokens per row. Each length is packed separately, and its
            rows are counted separately from those of other lengths.
    """

    batch_size: Positive[int | PiecewiseConstant]
    sequence_length: Positive[int | PiecewiseConstant]
    order: Order = Shuffled()
    packing: Packing = ConcatAndSplit()

    def __post_init__(self):
        _ = self.schedule

    @property
    def schedule(self) -> BatchSchedule:
        return BatchSchedule.build(
            type(self).__name__, self.batch_size, self.sequence_length
        )

    @abstractmethod
    def open_store(self) -> tuple[Store, Tokenizer]:
        """Opens the token store and its tokenizer."""

    def open(self) -> "TokenDataset":
        """Opens the token store, and packs it if no cached packing exists."""
        store, tokenizer = self.open_store()
        require(
            store.size >= 2,
            f"{self} has {store.size} tokens, and a target needs two: add text.",
        )
        return TokenDataset(
            store=store,
            tokenizer=tokenizer,
            order=self.order,
            packing=self.packing,
            schedule=self.schedule,
        )


@configurable
@dataclass(frozen=True, kw_only=True)
class TextDataset(PackedDataset):
    """One split of a corpus. It is tokenized once and cached."""

    corpus: Corpus
    tokenizer: TokenizerConfig
    split: Split = "train"

    def open_store(self) -> tuple[Store, Tokenizer]:
        """Trains the tokenizer and tokenizes the corpus, unless both are cached."""
        tokenizer = self.tokenizer.open(self.corpus)
        return open_cached_store(self.corpus, tokenizer, self.split), tokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenDataset(Dataset):
    """Sequences packed from a token store, in some order."""

    store: Store
    tokenizer: Tokenizer
    order: Order
    packing: Packing
    schedule: BatchSchedule
    _packings: dict[int, PackedDocuments] = field(default_factory=dict, init=False)

    def __post_init__(self):
        for stage in self.schedule.stages:  # fail now, not at the first batch
            _ = self.pack(stage.sequence_length).rows

    @cached_property
    def info(self) -> DatasetInfo:
        _, batch_size, sequence_length = self.schedule.stages[0]
        rows = self.pack(sequence_length).rows
        constant = len(self.schedule.stages) == 1
        return DatasetInfo(
            schedule=self.schedule,
            vocab=self.tokenizer.vocab,
            fingerprint=self.store.fingerprint,
            tokenizer=self.tokenizer,
            steps=-(-rows // batch_size) if constant and rows is not None else None,
        )

    def read(self, request: RowRequest) -> Batch:
        segments = self.pack(request.sequence_length).select(request)
        shape = len(request.rows), request.sequence_length
        return fill_batch(self.store, segments, shape)

    def locate(self, request: RowRequest) -> list[DocumentSpan]:
        row, start, length, _ = self.pack(request.sequence_length).select(request)
        segment = np.arange(1, len(row) + 1) - np.searchsorted(row, row)
        document = np.searchsorted(self.store.starts, start, side="right") - 1
        offset = start - self.store.starts[document]
        columns = (request.rows[row], segment, document, offset, length)
        return [
            DocumentSpan(row, segment, *self.store.locate(document), offset, length)
            for row, segment, document, offset, length in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]

    def pack(self, length: int) -> PackedDocuments:
        if length not in self._packings:
            packed = self.packing.pack(self.store, self.order, length)
            self._packings[length] = packed
        return self._packings[length]


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
    """A store with the documents of one source. Uses 8 bytes of memory per document."""
    hint = suggest(name, store.sources)
    message = f"the store in {folder} has no source {name!r}{hint}."
    require(name in store.sources, message)
    assert isinstance(store.parts, MappedShards)  # those of a folder are
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
        parts=store.parts.select(numbers),
        part_offsets=np.cumsum([0, *sizes], dtype=np.int64),
        starts=starts,
        bytes=sum(shards[n]["bytes"] for n in numbers),
        fingerprint={**store.fingerprint, "source": name},
        sources={name: (range(len(starts) - 1),)},
    )
