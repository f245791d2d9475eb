"""Token stores in memory, datasets that are open already, and a cache per test."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from lmx.data.dataset import Dataset, DatasetConfig
from lmx.data.sampling.order import Order, Shuffled
from lmx.data.sampling.packing import Packing
from lmx.data.schedule import BatchSchedule
from lmx.data.store.store import Store
from lmx.data.text_dataset import TokenDataset
from lmx.data.tokenizer.base import ByteTokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LMX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@dataclass(frozen=True, kw_only=True)
class OpenConfig(DatasetConfig):
    """Configuration of a dataset that is open already."""

    dataset: Dataset

    @property
    def schedule(self) -> BatchSchedule:
        return self.dataset.info.schedule

    def open(self) -> Dataset:
        return self.dataset


@pytest.fixture
def open_config():
    return OpenConfig


@pytest.fixture
def make_store():
    """Makes a store of documents of given sizes, in three parts.

    A token is its offset in the stream plus `first`.
    """

    def make_store(sizes, first: int = 0) -> Store:
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        tokens = np.arange(first, first + starts[-1], dtype=np.uint32)
        borders = np.array([0, len(tokens) // 3, len(tokens) // 2, len(tokens)])
        return Store(
            parts=[tokens[a:b] for a, b in pairwise(borders)],
            part_offsets=borders,
            starts=starts,
            bytes=0,
            fingerprint={"sizes": f"{sizes}{first}"},
            sources={"memory": (range(len(sizes)),)},
        )

    return make_store


@pytest.fixture
def make_dataset():
    """Makes a dataset of a store."""

    def make_dataset(
        store: Store, packing: Packing, batch_size, length, order: Order = Shuffled()
    ) -> TokenDataset:
        return TokenDataset(
            store=store,
            tokenizer=ByteTokenizer(),
            order=order,
            packing=packing,
            schedule=BatchSchedule.build("TextDataset", batch_size, length),
        )

    return make_dataset
