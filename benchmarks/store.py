"""How fast a token store is built and opened: `python benchmarks/store.py`.

Building beside the tokenizer's own library, which encodes the same texts out of memory,
all of them in turn: CPU seconds of one process, and seconds of two. Opening a store of
ten million documents in a fresh process, and the memory that it takes.
"""

import dataclasses
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmx.core.files import write_atomic
from lmx.data.corpus.corpus import HoldoutDocuments
from lmx.data.corpus.stdlib import Stdlib
from lmx.data.corpus.text import Text
from lmx.data.store.build import BuildTokenStore
from lmx.data.store.checksum import FileChecksum
from lmx.data.store.commit import commit
from lmx.data.store.executor import ProcessPool
from lmx.data.store.shard_writer import (
    BuildJob,
    ShardSpec,
    get_lengths_path,
    get_record_path,
)
from lmx.data.store.store import format_shard_name
from lmx.data.tokenizer.base import ByteTokenizer, Tokenizer, TokenizerConfig
from lmx.data.tokenizer.hf_json import TOKENIZER_JSON, HFTokenizer
from lmx.data.tokenizer.sentencepiece import SentencePiece, SentencePieceTokenizer

Work = Callable[[], Any]
ROUNDS = 3
BYTES = 100_000_000  # of text
PART = 4000  # characters of a document
DOCUMENTS, SHARDS, LENGTH = 10_000_000, 160, 50
OPEN = """
import time
import numpy
began = time.perf_counter()
from lmx.data.store.store import open_folder
ready = time.perf_counter()
store = open_folder(__import__("pathlib").Path({folder!r}))
opened = time.perf_counter()
last = store.document(store.documents - 1).sum()
read = time.perf_counter()
status = open("/proc/self/status").read()  # the other counter begins at the parent's
peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
print(store.documents, store.size, ready - began, opened - ready, read - opened, peak)
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(TokenizerConfig):
    """A tokenizer that is ready."""

    codec: Tokenizer

    def open(self, corpus: Any) -> Tokenizer:
        """The same for any corpus."""
        return self.codec


def texts() -> list[str]:
    """Parts of the sources of Python's library, as often as it takes."""
    every = [
        text[n : n + PART]
        for _, text in Stdlib().read("train")
        for n in range(0, len(text), PART)
    ]
    size = sum(map(len, every))
    return every * max(1, round(BYTES / size))


def fast(documents: Sequence[str]) -> HFTokenizer:
    """A byte-level tokenizer of the library `tokenizers`, learned from some texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8192, initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator(documents[:1000], trainer)
    return HFTokenizer(files={TOKENIZER_JSON: made.to_str().encode()})


def of_library(
    codec: HFTokenizer | SentencePieceTokenizer, documents: list[str]
) -> Work:
    """What the library itself does to the texts, all at once and in one thread."""
    if isinstance(codec, HFTokenizer):
        encode = codec._tokenizer.encode_batch_fast
        return lambda: [found.ids for found in encode(documents)]
    return lambda: codec._processor.Encode(documents, num_threads=1)


def cpu(work: Work) -> float:
    """CPU seconds of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def building(
    name: str,
    codec: HFTokenizer | SentencePieceTokenizer,
    documents: list[str],
    work: Path,
) -> None:
    """Prints what building takes, beside the library."""
    path = work / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    corpus = Text(path=f"{path}", holdout=HoldoutDocuments(fraction=0.0))
    build = BuildTokenStore(
        sources={"texts": corpus}, tokenizer=Given(codec=codec), shard_bytes=4_000_000
    )
    library, one, walls = of_library(codec, documents), [], {1: [], 2: []}
    own = []
    for number in range(ROUNDS):
        own.append(cpu(library))
        for count in walls:
            folder = work / f"{name}-{number}-{count}"
            page = dataclasses.replace(build, executor=ProcessPool(workers=count))
            began = time.perf_counter()
            used = cpu(lambda page=page, folder=folder: page.write(folder))
            walls[count].append(time.perf_counter() - began)
            if count == 1:
                one.append(used)
    size = sum(len(text.encode()) for text in documents) / 1e6
    ratio = [a / b for a, b in zip(own, one, strict=True)]
    faster = [a / b for a, b in zip(walls[1], walls[2], strict=True)]
    print(
        f"{name:13} {size / statistics.median(own):7.2f} {size / min(one):7.2f}"
        f" {statistics.median(ratio):7.2f} {spread(ratio):>12}"
        f" {statistics.median(faster):9.2f} {spread(faster):>12}"
    )


def spread(values: Sequence[float]) -> str:
    """The least and the most."""
    return f"{min(values):.2f}-{max(values):.2f}"


def made(folder: Path) -> None:
    """Writes a store of ten million documents, by way of what ends every build."""
    job = BuildJob(folder=folder, sources={}, codec=ByteTokenizer())
    job.work_dir.mkdir(parents=True)
    few = DOCUMENTS // SHARDS
    tokens = np.random.default_rng(0).integers(0, 256, few * LENGTH).astype("<u2")
    digest = FileChecksum()
    digest.update(tokens.view(np.uint8).data)
    record = {
        "source": "made",
        "documents": few,
        "tokens": len(tokens),
        "bytes": len(tokens),
        "dropped": {},
        "aside": {},
        "digest": digest.to_json(),
        "spans": [],
    }
    pieces = [ShardSpec(number, "made", ()) for number in range(SHARDS)]
    for piece in pieces:
        tokens.tofile(folder / format_shard_name(piece.number))
        np.full(few, LENGTH, "<i8").tofile(get_lengths_path(job, piece.number))
        write_atomic(get_record_path(job, piece.number), json.dumps(record).encode())
    commit(job, pieces, {}, {}, {})


def opening(folder: Path) -> None:
    """Prints what opening takes, each time in a fresh process."""
    made(folder)
    rows = []
    for _ in range(ROUNDS):
        command = [sys.executable, "-c", OPEN.format(folder=f"{folder}")]
        said = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append([float(word) for word in said.stdout.split()])
    documents, tokens, *_ = rows[0]
    print(f"\n{documents:,.0f} documents, {tokens:,.0f} tokens, {SHARDS} shards")
    print(f"{'':24} {'min':>7} {'median':>7} {'max':>7}")
    for name, values in zip(
        ("import, s", "open, s", "read the last one, s", "peak memory, MiB"),
        list(zip(*rows, strict=True))[2:],
        strict=True,
    ):
        middle = statistics.median(values)
        print(f"{name:24} {min(values):7.3f} {middle:7.3f} {max(values):7.3f}")


def main() -> None:
    """Prints two tables."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    print(f"{platform.machine()}, Python {platform.python_version()}, {ROUNDS} rounds")
    print("MB/s of CPU time; their ratio; how much faster two processes are than one")
    print(
        f"{'tokenizer':13} {'library':>7} {'build':>7} {'ratio':>7} {'spread':>12}"
        f" {'two':>9} {'spread':>12}"
    )
    documents = texts()
    with tempfile.TemporaryDirectory() as work:
        corpus = Stdlib()
        building("SentencePiece", SentencePiece().open(corpus), documents, Path(work))
        building("tokenizers", fast(documents), documents, Path(work))
        opening(Path(work, "large"))


if __name__ == "__main__":
    main()
