"""A store of 20,000 documents of three sources, read by real processes and in full."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lmx.core.batch import Batch
from lmx.data.corpus.corpus import HoldoutDocuments
from lmx.data.corpus.text import Text
from lmx.data.sampling.mixture import Mixture, MixtureComponent
from lmx.data.sampling.packing import BestFitPacking
from lmx.data.store.build import BuildTokenStore
from lmx.data.store.executor import ProcessPool
from lmx.data.text_dataset import TokenStoreDataset
from lmx.data.tokenizer.base import ByteTokenizer

SOURCES = {"books": 6000, "code": 2000, "web": 12_000}
WEIGHTS = {"books": 0.25, "code": 0.15, "web": 0.6}
STEPS = (0, 1, 777, 10**9)


def texts(name: str) -> list[str]:
    """Documents that say which they are, of about 40 bytes and some of 200."""
    size = np.random.default_rng(SOURCES[name]).geometric(0.12, SOURCES[name])
    return [
        f"{name} {number} " + "la " * min(int(words), 66)
        for number, words in enumerate(size)
    ]


def mixture(store: str) -> Mixture:
    """Three sources of the store, shuffled and packed."""
    return Mixture(
        components={
            name: MixtureComponent(
                source=TokenStoreDataset(
                    path=store,
                    source=name,
                    batch_size=16,
                    sequence_length=256,
                    packing=BestFitPacking(),
                ),
                weight=weight,
            )
            for name, weight in WEIGHTS.items()
        }
    )


def build(folder: str) -> None:
    """Writes the documents and builds the store."""
    sources = {}
    for name in SOURCES:
        path = Path(folder, f"{name}.jsonl")
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts(name)))
        sources[name] = Text(path=str(path), holdout=HoldoutDocuments(fraction=0.0))
    store = BuildTokenStore(
        sources=sources, tokenizer=ByteTokenizer(), executor=ProcessPool(workers=1)
    )
    store.write(Path(folder, "store"))


def read(store: str, first_share: str, out: str) -> None:
    """Writes what one of two readers has: shares of 1, 2, 4 and 8 processes."""
    rows = mixture(store).open()
    for step in STEPS:
        for count in (1, 2, 4, 8):
            for share in range(int(first_share), count, 2):
                some = slice(share * 16 // count, (share + 1) * 16 // count)
                batch = rows.batch_at(11, step, some)
                np.savez(f"{out}/{step}-{count}-{share}.npz", *batch)


def read_epochs(store: str, out: str) -> None:
    """Writes the documents of two epochs: each row a line, documents between tabs."""
    stored = TokenStoreDataset(
        path=store, batch_size=1000, sequence_length=256, packing=BestFitPacking()
    )
    rows = stored.open()
    count = rows.pack(256).rows or 0
    epochs: list[list[bytes]] = [[], []]
    for step in range(-(-2 * count // 1000)):
        found = documents(rows.batch_at(0, step))[: 2 * count - 1000 * step]
        for index, row in enumerate(found, 1000 * step):
            epochs[index // count].append(b"\t".join(row))
    for name, epoch in enumerate(epochs):
        Path(out, str(name)).write_bytes(b"\n".join(epoch))


def process(function: str, *words: str) -> subprocess.Popen:
    """A process that calls one of these functions."""
    code = f"import sys, test_processes; test_processes.{function}(*sys.argv[1:])"
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], env={**os.environ, "PYTHONPATH": path}
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    assert process("build", str(folder)).wait() == 0
    return str(folder / "store")


@pytest.fixture(autouse=True)
def cache(store, monkeypatch):
    monkeypatch.setenv("LMX_CACHE", str(Path(store).parent / "cache"))


def documents(batch: Batch) -> list[list[bytes]]:
    """The texts of each row, in order, without begin and end."""
    length = batch.tokens.shape[1]
    every = batch.tokens.astype(np.uint8).tobytes()
    live = (batch.segments > 0).reshape(-1)
    begins = (batch.positions == 0).reshape(-1) & live
    sizes = np.bincount(begins.cumsum()[live] - 1)  # no segment comes after padding
    begins = np.flatnonzero(begins)
    ends = begins + sizes
    assert (batch.tokens.reshape(-1)[begins] == 256).all()
    assert (batch.targets.reshape(-1)[ends - 1] == 257).all()
    found = [[] for _ in batch.tokens]
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        found[begin // length].append(every[begin + 1 : end])
    return found


def test_the_batch_is_the_same_bytes_for_any_number_of_processes(store, tmp_path):
    """Each process begins anew, as after a kill, at steps that it has not come to."""
    rows = mixture(store).open()
    whole = {step: rows.batch_at(11, step) for step in STEPS}
    readers = [process("read", store, str(i), str(tmp_path)) for i in range(2)]
    assert [reader.wait() for reader in readers] == [0] * 2
    for step, batch in whole.items():
        for count in (1, 2, 4, 8):
            pieces = []
            for share in range(count):
                with np.load(tmp_path / f"{step}-{count}-{share}.npz") as found:
                    pieces.append(list(found.values()))
            for field, *parts in zip(batch, *pieces, strict=True):
                assert np.concatenate(parts).tobytes() == field.tobytes()
        names = {text.split()[0] for row in documents(batch) for text in row}
        assert len(names) == 3
    assert len({batch.tokens.tobytes() for batch in whole.values()}) == len(STEPS)


def test_an_epoch_has_every_document_once_and_the_next_has_another_order(
    store, tmp_path
):
    assert process("read_epochs", store, str(tmp_path)).wait() == 0
    epochs = [
        [row.split(b"\t") for row in (tmp_path / name).read_bytes().split(b"\n")]
        for name in "01"
    ]
    wanted = {text.encode() for name in SOURCES for text in texts(name)}
    assert len(wanted) == 20_000
    for epoch in epochs:
        seen = [document for row in epoch for document in row]
        assert len(seen) == 20_000 and set(seen) == wanted
    alike = sum(a == b for a, b in zip(*epochs, strict=True))
    assert alike < 10  # one is expected
