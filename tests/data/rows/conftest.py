"""Stores in memory, and a cache of their own for these tests."""

import numpy as np
import pytest

from lmx.data.batches import TokenRows
from lmx.data.rows.order import Order, Shuffled
from lmx.data.rows.packing import Packing
from lmx.data.rows.schedule import Course
from lmx.data.store import Store
from lmx.data.tokenizers.codec import ByteCodec


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LMX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def store_of(sizes, first: int = 0) -> Store:
    """Documents of these sizes; each token tells its place, counted from `first` on."""
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    tokens = np.arange(first, first + starts[-1], dtype=np.uint32)
    return Store(
        tokens=tokens, starts=starts, bytes=0, fingerprint={"sizes": f"{sizes}{first}"}
    )


def rows_of(store: Store, packing: Packing, batch, length, order: Order = Shuffled()):
    """The rows of a store."""
    return TokenRows(
        store=store,
        tokenizer=ByteCodec(),
        order=order,
        packing=packing,
        course=Course.of("Tokens", batch, length),
    )


@pytest.fixture
def make_store():
    return store_of


@pytest.fixture
def make_rows():
    return rows_of
