"""Readers of files of others, under random damage: no error but the library's own."""

import io
import json
import math
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from lmx.config.registry import ConfigError
from lmx.config.resolve import load
from lmx.data.store.store import open_store, verify
from lmx.data.tokenizer.base import ByteTokenizer
from lmx.data.tokenizer.pretrained import load_hf_folder, load_tokenizer
from lmx.models.hf.api import HFCheckpoint
from lmx.models.hf.safetensors import SafetensorsFolder
from lmx.run.goodput import total_seconds
from lmx.run.run_dir import (
    SCHEMA,
    RunDir,
    read_config,
    read_last_metrics,
    read_ledger,
    read_run_ids,
)
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.policy import CheckpointPolicy
from lmx.train.checkpoint.reader import CheckpointReader
from lmx.train.experiment import Experiment
from tests.data.store.conftest import make_config
from tests.faults.trainer import ROOT
from tests.train.checkpoint.conftest import abstract, make_state, save

pytestmark = pytest.mark.faults

PARTS = 7  # readers, which share the time
LONGEST, MEMORY = 10.0, 2 << 20  # CPU seconds of one read; kB of growth
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
VALUES = (None, True, -1, 2**70, 1e308, math.nan, "", "\0", "x" * 5000, "²")
VALUES = (*VALUES, [], {}, [1, "a"], {"a": 1}, DEEP, "../../x", 0, 0.5, [None])
TINY = ROOT / "tests" / "train" / "tiny.gin"


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Cuts, flips, repeats or inserts bytes."""
    at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    kind = rng.randrange(5)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[to:]
    if kind == 2:
        return data[:to] + data[at:to] * rng.choice((1, 30)) + data[to:]
    if kind == 3:
        return data[:at] + rng.choice((b"\0", b"[" * 999, b"9" * 5000)) + data[at:]
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 8))):
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """Replaces a value anywhere in the JSON by one of another kind, or removes it."""
    content = json.loads(data)
    places: list[tuple[Any, Any]] = []
    parts: list[Any] = [content]
    for part in parts:
        keys = part if isinstance(part, dict) else range(len(part))
        places += [(part, key) for key in keys]
        parts += [part[key] for key in keys if isinstance(part[key], dict | list)]
    part, key = rng.choice(places)
    if rng.random() < 0.2:
        del part[key]
    else:
        part[key] = rng.choice(VALUES)
    return json.dumps(content).encode()


def make_run(folder: Path) -> Callable[[], object]:
    config = load([TINY], root=Experiment)
    metadata = {"schema": SCHEMA, "run_id": "a", "data": {"source": "echo"}}
    run = RunDir.claim(folder / "run", config, metadata, ByteTokenizer())
    for step in range(1, 4):
        run.log_metrics(step, {"loss": 1.0})
        run.record_hook(step, "save", "due")
        line = {"attempt": 1, "step": step, "seconds": {"step": 1.0}}
        run.append("timing.jsonl", line)
    run.close()

    def read() -> None:
        path = folder / "run"
        for each in (read_config, read_run_ids, read_last_metrics, read_ledger):
            each(path)
        total_seconds(path)
        load_tokenizer(path)

    return read


def make_checkpoints(folder: Path) -> Callable[[], object]:
    checkpoints = CheckpointManager(folder / "checkpoints")
    save(checkpoints, 1, 2)
    state = abstract(make_state(1))

    def read() -> None:
        again = CheckpointManager(folder / "checkpoints")
        for step in again.list_steps():
            CheckpointReader(again.directory.step_path(step)).verify()
        again.restore_newest(state, CheckpointPolicy().handle_damage)

    return read


def make_store(folder: Path) -> Callable[[], object]:
    (folder / "texts").mkdir()
    for n in range(9):
        (folder / "texts" / f"{n}.txt").write_text(f"text {n} " * 50)
    make_config(folder / "texts", shard_bytes=1000).write(folder / "store")

    def read() -> None:
        store = open_store(folder / "store")
        store.read(0, store.size)
        for number in range(store.documents):
            store.read_document(number)
        list(verify(folder / "store"))

    return read


def make_gin(folder: Path) -> Callable[[], object]:
    (folder / "a.gin").write_text(TINY.read_text())
    return lambda: load([folder / "a.gin"], root=Experiment)


def make_weights(folder: Path) -> Callable[[], object]:
    from safetensors.numpy import save_file

    from tests.llama import CONFIG, tensors_of

    (folder / "config.json").write_text(json.dumps(CONFIG))
    tensors = {k: v for k, v in [*tensors_of(CONFIG).items()][:3]}
    save_file(tensors, folder / "model-1.safetensors")
    index = {
        "metadata": {},
        "weight_map": dict.fromkeys(tensors, "model-1.safetensors"),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    def read() -> None:
        weights = SafetensorsFolder(folder)
        for name in weights.tensors:
            np.array(weights.view(name))
        HFCheckpoint(folder).to_config("float32")

    return read


def make_tokenizer(folder: Path) -> Callable[[], object]:
    vocab = {chr(97 + n): n for n in range(20)} | {"ab": 20}
    added = [{"id": 21, "content": "<s>", "special": True}]
    model = {"type": "BPE", "vocab": vocab, "merges": [["a", "b"]]}
    decoder = {"type": "ByteLevel"}
    whole = {"added_tokens": added, "model": model, "decoder": decoder}
    config = {"bos_token": "<s>", "add_bos_token": True, "eos_token": {"content": "a"}}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))

    def read() -> None:
        tokenizer = load_hf_folder(folder, {"eos_token_id": 1})
        if tokenizer is not None:
            tokenizer.decode(range(tokenizer.vocab))

    return read


def make_sentencepiece(folder: Path) -> Callable[[], object]:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["a bead faded in the dark", "to be or not to be"] * 9),
        model_writer=model,
        vocab_size=285,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())

    def read() -> None:
        tokenizer = load_hf_folder(folder, {})
        if tokenizer is not None:
            tokenizer.decode(tokenizer.encode("to be dark")[:50])

    return read


MAKERS = (
    make_run,
    make_checkpoints,
    make_store,
    make_gin,
    make_weights,
    make_tokenizer,
    make_sentencepiece,
)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("seconds", [60, pytest.param(1200, marks=pytest.mark.nightly)])
def test_a_damaged_file_is_refused_by_an_error_of_the_library(tmp_path, make, seconds):
    """Whatever the damage: a ConfigError, or a result, in bounded time and memory."""
    read = make(tmp_path)
    read()
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    files = [path for path in files if path.parent.name != "texts"]
    contents = {path: path.read_bytes() for path in files}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end, seed = time.monotonic() + seconds / PARTS, 0
    while time.monotonic() < end:
        seed += 1
        rng = random.Random(seed)
        path = rng.choice(files)
        is_json = path.suffix == ".json" and rng.random() < 0.7
        change = damage_json if is_json else damage_bytes
        data = change(contents[path], rng) if contents[path] else b"\0"
        path.write_bytes(data)
        start = time.process_time()
        try:
            read()
        except ConfigError:
            pass
        except Exception as error:
            error.add_note(f"seed {seed}: {path.name} is {data[:2000]!r}")
            raise
        took = time.process_time() - start
        assert took < LONGEST, f"seed {seed}: {path.name} took {took} s"
        for name, content in contents.items():
            if not name.is_file() or name.read_bytes() != content:
                name.parent.mkdir(parents=True, exist_ok=True)
                name.write_bytes(content)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown < MEMORY, f"{grown} kB"
