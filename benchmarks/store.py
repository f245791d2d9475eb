"""Speed of building and opening token stores: `python benchmarks/store.py`.

Building is compared with the tokenizer's own library on the same texts in memory,
interleaved: CPU seconds of one process, and seconds of two. A store of ten million
documents is opened in a new process.
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
from lmx.data.corpus.text import Stdlib, Text
from lmx.data.store.build import BuildTokenStore
from lmx.data.store.executor import ProcessPool
from lmx.data.store.shard_plan import BuildJob, ShardSpec
from lmx.data.store.shard_writer import commit
from lmx.data.store.store import compute_checksum, format_shard_name
from lmx.data.tokenizer.base import ByteTokenizer, Tokenizer, TokenizerConfig
from lmx.data.tokenizer.sentencepiece import SentencePiece, SentencePieceTokenizer
from lmx.data.tokenizer.tokenizer_json import TOKENIZER_JSON, HFTokenizer

ROUNDS = 3
BYTES = 100_000_000  # of text
DOCUMENT_CHARS = 4000
DOCUMENTS, SHARDS, LENGTH = 10_000_000, 160, 50
OPEN = """
import time
import numpy
start = time.perf_counter()
from lmx.data.store.store import open_store
imported = time.perf_counter()
store = open_store(__import__("pathlib").Path({folder!r}))
opened = time.perf_counter()
last = store.read_document(store.documents - 1).sum()
read = time.perf_counter()
status = open("/proc/self/status").read()  # ru_maxrss includes the parent process
peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
seconds = (imported - start, opened - imported, read - opened)
print(store.documents, store.size, *seconds, peak)
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenTokenizer(TokenizerConfig):
    """A tokenizer that is already open."""

    tokenizer: Tokenizer

    def open(self, corpus: Any) -> Tokenizer:
        """Returns the tokenizer, for any corpus."""
        return self.tokenizer


def read_texts() -> list[str]:
    """Returns parts of the sources of the standard library, repeated."""
    texts = [
        text[n : n + DOCUMENT_CHARS]
        for _, text in Stdlib().read("train")
        for n in range(0, len(text), DOCUMENT_CHARS)
    ]
    return texts * max(1, round(BYTES / sum(map(len, texts))))


def train_hf_tokenizer(texts: Sequence[str]) -> HFTokenizer:
    """Trains a byte-level tokenizer of the library `tokenizers` on some texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8192, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts[:1000], trainer)
    return HFTokenizer(files={TOKENIZER_JSON: tokenizer.to_str().encode()})


def encode_with_library(
    tokenizer: HFTokenizer | SentencePieceTokenizer, texts: list[str]
) -> Callable[[], Any]:
    """Returns a function that encodes all texts with the library, in one thread."""
    if isinstance(tokenizer, HFTokenizer):
        encode = tokenizer._tokenizer.encode_batch_fast
        return lambda: [encoding.ids for encoding in encode(texts)]
    return lambda: tokenizer._processor.Encode(texts, num_threads=1)


def measure_cpu(function: Callable[[], Any]) -> float:
    """Returns the CPU seconds of this process."""
    start = time.process_time()
    function()
    return time.process_time() - start


def measure_build(
    name: str,
    tokenizer: HFTokenizer | SentencePieceTokenizer,
    texts: list[str],
    work: Path,
) -> None:
    """Prints the speed of building, compared with the library."""
    path = work / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = Text(path=f"{path}", holdout=HoldoutDocuments(fraction=0.0))
    config = OpenTokenizer(tokenizer=tokenizer)
    build = BuildTokenStore(
        sources={"texts": corpus}, tokenizer=config, shard_bytes=4_000_000
    )
    encode = encode_with_library(tokenizer, texts)
    library, one, walls = [], [], {1: [], 2: []}
    for number in range(ROUNDS):
        library.append(measure_cpu(encode))
        for workers in walls:
            pool = ProcessPool(workers=workers)
            config = dataclasses.replace(build, executor=pool)
            folder = work / f"{name}-{number}-{workers}"
            start = time.perf_counter()
            used = measure_cpu(lambda c=config, folder=folder: c.write(folder))
            walls[workers].append(time.perf_counter() - start)
            if workers == 1:
                one.append(used)
    size = sum(len(text.encode()) for text in texts) / 1e6
    ratio = [a / b for a, b in zip(library, one, strict=True)]
    speedup = [a / b for a, b in zip(walls[1], walls[2], strict=True)]
    print(
        f"{name:13} {size / statistics.median(library):7.2f} {size / min(one):7.2f}"
        f" {statistics.median(ratio):7.2f} {format_range(ratio):>12}"
        f" {statistics.median(speedup):9.2f} {format_range(speedup):>12}"
    )


def format_range(values: Sequence[float]) -> str:
    """Returns the minimum and the maximum as text."""
    return f"{min(values):.2f}-{max(values):.2f}"


def write_large_store(folder: Path) -> None:
    """Writes a store of ten million documents, with the commit of a regular build."""
    job = BuildJob(folder=folder, sources={}, tokenizer=ByteTokenizer())
    job.work_dir.mkdir(parents=True)
    documents = DOCUMENTS // SHARDS
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, documents * LENGTH).astype("<u2")
    record = {
        "source": "random",
        "documents": documents,
        "tokens": len(tokens),
        "bytes": len(tokens),
        "filtered": {},
        "rejected": {},
        "checksum": compute_checksum([tokens.tobytes()]),
        "spans": [],
    }
    specs = [ShardSpec(number, "random", ()) for number in range(SHARDS)]
    for spec in specs:
        tokens.tofile(folder / format_shard_name(spec.number))
        np.full(documents, LENGTH, "<i8").tofile(job.get_path(spec.number, "lengths"))
        path = job.get_path(spec.number, "json")
        write_atomic(path, json.dumps(record).encode())
    commit(job, specs)


def measure_open(folder: Path) -> None:
    """Prints time and memory of opening, each time in a new process."""
    write_large_store(folder)
    rows = []
    for _ in range(ROUNDS):
        command = [sys.executable, "-c", OPEN.format(folder=f"{folder}")]
        process = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append([float(number) for number in process.stdout.split()])
    documents, tokens, *_ = rows[0]
    print(f"\n{documents:,.0f} documents, {tokens:,.0f} tokens, {SHARDS} shards")
    print(f"{'':24} {'min':>7} {'median':>7} {'max':>7}")
    for name, values in zip(
        ("import, s", "open, s", "read the last one, s", "peak memory, MiB"),
        list(zip(*rows, strict=True))[2:],
        strict=True,
    ):
        median = statistics.median(values)
        print(f"{name:24} {min(values):7.3f} {median:7.3f} {max(values):7.3f}")


def main() -> None:
    """Prints two tables."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    print(f"{platform.machine()}, Python {platform.python_version()}, {ROUNDS} rounds")
    print("MB/s of CPU time; their ratio; speedup of two processes over one")
    print(
        f"{'tokenizer':13} {'library':>7} {'build':>7} {'ratio':>7} {'range':>12}"
        f" {'two':>9} {'range':>12}"
    )
    texts = read_texts()
    with tempfile.TemporaryDirectory() as work:
        tokenizer = SentencePiece().open(Stdlib())
        measure_build("SentencePiece", tokenizer, texts, Path(work))
        measure_build("tokenizers", train_hf_tokenizer(texts), texts, Path(work))
        measure_open(Path(work, "large"))


if __name__ == "__main__":
    main()
