"""Speed of data loading on one core: `python benchmarks/data.py`.

    lmx, three sources   a weighted mixture, shuffled, best-fit packing, with targets,
                         weights, positions and segments
    lmx, one stream      one source, shuffled, concatenated and split, the same arrays
    nanoGPT's loop       random windows of one memory-mapped array, tokens and targets:
                         no epochs, and windows cross documents
    Grain, ArrayRecord   sequences packed in advance, one per record, shuffled, tokens
                         and targets

The tokens are the same. The loaders are interleaved, for several rounds, in one process
on one core. Times are CPU seconds, as other processes may run.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from lmx.data.corpus.corpus import HoldoutDocuments
from lmx.data.corpus.text import Text
from lmx.data.sampling.mixture import Mixture, MixtureComponent
from lmx.data.sampling.packing import BestFitPacking, ConcatAndSplit, Packing
from lmx.data.store.build import BuildTokenStore
from lmx.data.store.executor import ProcessPool
from lmx.data.store.store import Store
from lmx.data.text_dataset import TokenStoreDataset
from lmx.data.tokenizer.base import ByteTokenizer

ROUNDS, BATCHES = 7, 40
BATCH, LENGTH = 64, 2048
SOURCES = {"books": (0.3, 8_000), "code": (0.1, 8_000), "web": (0.6, 24_000)}


def build(folder: Path) -> Store:
    """Builds a store of 40,000 documents of about 1,200 bytes, a few much longer."""
    rng, sources = np.random.default_rng(0), {}
    for name, (_, count) in SOURCES.items():
        sizes = np.maximum(rng.lognormal(6.6, 1.0, count), 8).astype(int)
        path = folder / f"{name}.jsonl"
        with path.open("w") as file:
            for size in sizes.tolist():
                letters = rng.integers(97, 123, size, np.uint8).tobytes()
                file.write(json.dumps({"text": letters.decode()}) + "\n")
        sources[name] = Text(path=str(path), holdout=HoldoutDocuments(fraction=0.0))
    engine = ProcessPool(workers=1)
    build = BuildTokenStore(sources=sources, tokenizer=ByteTokenizer(), executor=engine)
    return build.write(folder / "store")


def read_store(
    folder: Path, packing: Packing, source: str | None = None
) -> TokenStoreDataset:
    """Returns one source of the store, or all of it."""
    return TokenStoreDataset(
        path=str(folder / "store"),
        source=source,
        batch_size=BATCH,
        sequence_length=LENGTH,
        packing=packing,
    )


def load_lmx(folder: Path, packing: Packing, mixed: bool) -> Iterator[object]:
    """Yields batches of lmx, step by step."""
    source = read_store(folder, packing)
    if mixed:
        source = Mixture(
            components={
                name: MixtureComponent(
                    source=read_store(folder, packing, name), weight=weight
                )
                for name, (weight, _) in SOURCES.items()
            }
        )
    rows = source.open()
    step = 0
    while True:
        yield rows.batch_at(0, step)
        step += 1


def load_nanogpt(path: Path) -> Iterator[object]:
    """Yields batches as `get_batch` of nanoGPT's train.py, without the device copy."""
    rng = np.random.default_rng(0)
    while True:
        data = np.memmap(
            path, np.uint16, mode="r"
        )  # opened for each batch, as in nanoGPT
        ix = rng.integers(0, len(data) - LENGTH, BATCH)
        x = np.stack([data[i : i + LENGTH].astype(np.int64) for i in ix])
        y = np.stack([data[i + 1 : i + 1 + LENGTH].astype(np.int64) for i in ix])
        yield x, y


def load_grain(path: Path) -> Iterator[object]:
    """Yields batches of Grain, in the calling thread."""

    def split_targets(record: bytes) -> tuple[np.ndarray, np.ndarray]:
        row = np.frombuffer(record, np.uint16).astype(np.int32)
        return row[:-1], row[1:]

    source: Any = grain.sources.ArrayRecordDataSource(str(path))
    rows = grain.MapDataset.source(source).seed(0).shuffle().repeat()
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(rows.map(split_targets).batch(BATCH).to_iter_dataset(options))


def write_rows(store: Store, folder: Path) -> None:
    """Writes the tokens of the store in the formats of nanoGPT and Grain."""
    store.read(0, store.size).astype(np.uint16).tofile(folder / "train.bin")
    writer = ArrayRecordWriter(str(folder / "rows.array_record"), "group_size:1")
    for begin in range(0, store.size - LENGTH - 1, LENGTH):
        row = store.read(begin, begin + LENGTH + 1).astype(np.uint16)
        writer.write(row.tobytes())
    writer.close()


def measure_speed(batches: Iterator[object]) -> float:
    """Returns million tokens per second."""
    start = time.process_time()
    for _ in range(BATCHES):
        next(batches)
    return BATCHES * BATCH * LENGTH / (time.process_time() - start) / 1e6


def main() -> None:
    """Prints a table: million tokens per second, and the ratio to the first row."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["LMX_CACHE"] = str(folder / "cache")
        store = build(folder)
        write_rows(store, folder)
        loaders: dict[str, Callable[[], Iterator[object]]] = {
            "lmx, three sources": lambda: load_lmx(
                folder, BestFitPacking(), mixed=True
            ),
            "lmx, one stream": lambda: load_lmx(folder, ConcatAndSplit(), mixed=False),
            "nanoGPT's loop": lambda: load_nanogpt(folder / "train.bin"),
            "Grain, ArrayRecord": lambda: load_grain(folder / "rows.array_record"),
        }
        batches = {name: load() for name, load in loaders.items()}
        for each in batches.values():
            next(each)
        speeds: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(ROUNDS):
            for name, loader in batches.items():
                speeds[name].append(measure_speed(loader))
        size, documents = store.size / 1e6, store.documents
    print(f"{platform.machine()}, one core, {ROUNDS} rounds, rows of {LENGTH} tokens")
    print(f"{documents:,} documents, {size:.0f} million tokens of two bytes")
    print(f"{'loader':<22}{'min':>8}{'median':>8}{'max':>8}  million tokens/s; ratio")
    first = statistics.median(next(iter(speeds.values())))
    for name, each in speeds.items():
        low, median, high = min(each), statistics.median(each), max(each)
        ratio = median / first
        print(f"{name:<22}{low:8.1f}{median:8.1f}{high:8.1f}  {ratio:.2f}")


if __name__ == "__main__":
    main()
