"""A build that is killed repeatedly writes the bytes of an uninterrupted build."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lmx.config.resolve import load
from lmx.data.corpus.corpus import Document
from lmx.data.store.build import BuildTokenStore
from lmx.data.store.store import open_store

ROOT = Path(__file__).parents[2]
TIMEOUT = 300.0  # seconds, on a busy machine
CONFIG = """
BuildTokenStore:
  sources = {'lines': @lines/Text(), 'files': @files/Text()}
  tokenizer = @ByteTokenizer()
  filters = [@LengthFilter()]
  shard_bytes = 60000
  executor = @ProcessPool()
ProcessPool.workers = 1
LengthFilter.min_chars = 30
"""


def make_texts(rng: random.Random, count: int) -> list[str]:
    """Returns distinct texts."""
    return [
        f"{number} " + "".join(rng.choices("ab cdé\n", k=rng.randrange(1, 900)))
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A config with two sources: the lines of one file, and small files."""
    work, rng = tmp_path_factory.mktemp("build"), random.Random(1)
    (work / "files").mkdir()
    lines = [json.dumps({"text": text}) + "\n" for text in make_texts(rng, 2000)]
    (work / "lines.jsonl").write_text("".join(lines))
    for number, text in enumerate(make_texts(rng, 400)):
        (work / "files" / f"{number:03}.txt").write_text(text)
    bindings = f"{CONFIG}lines/Text.path = '{work / 'lines.jsonl'}'\n"
    bindings += f"files/Text.path = '{work / 'files'}'\n"
    (work / "store.gin").write_text(bindings)
    return work / "store.gin"


@pytest.fixture(scope="module")
def reference(config, tmp_path_factory) -> Path:
    """The folder of a store from an uninterrupted build."""
    folder = tmp_path_factory.mktemp("reference") / "store"
    load([config], root=BuildTokenStore).build().write(folder)
    return folder


def read_files(folder: Path) -> dict[str, bytes]:
    """Returns the content of every file in the folder, including hidden ones."""
    return {
        f"{path.relative_to(folder)}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def decode(tokens: np.ndarray) -> str:
    """Returns the text of byte tokens between BOS and EOS."""
    return tokens[1:-1].astype(np.uint8).tobytes().decode()


def run_kills(config: Path, root: Path, mode: str, *overrides: str) -> dict[str, int]:
    """Returns the output of `kill_build.py`."""
    script = ROOT / "tests" / "faults" / "kill_build.py"
    process = subprocess.run(
        [sys.executable, script, config, root, mode, *overrides],
        env={**os.environ, "PYTHONPATH": f"{ROOT}"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_no_document_is_lost_or_duplicated(config, reference):
    store = open_store(reference)
    found = [decode(store.read_document(number)) for number in range(store.documents)]
    build = load([config], root=BuildTokenStore).build()
    every = [d for c in build.sources.values() for d in c.read_nonempty("train")]
    kept = [d.text for d in every if isinstance(build.filters[0](d), Document)]
    assert found == kept and len(set(found)) == len(found) > 2000


def test_a_build_killed_at_random_times_ends_in_the_same_bytes(
    config, reference, tmp_path
):
    counts = run_kills(config, tmp_path, "random")
    assert counts["kills"] >= 20
    expected = read_files(reference)
    for number in range(counts["stores"]):
        assert read_files(tmp_path / f"{number}") == expected


def test_a_build_killed_at_each_rename_ends_in_the_same_bytes(config, tmp_path):
    few = [
        "BuildTokenStore.sources={'files': @files/Text()}",
        "BuildTokenStore.shard_bytes=100000",
    ]
    load([config], few, root=BuildTokenStore).build().write(tmp_path / "whole")
    expected = read_files(tmp_path / "whole")
    shards = sum(name.startswith("tokens-") for name in expected)
    others = 4  # tokenizer, shards, starts, manifest
    counts = run_kills(config, tmp_path, "renames", *few)
    assert counts["kills"] == 2 * (3 * shards + others)
    for number in range(counts["stores"]):
        assert read_files(tmp_path / f"{number}") == expected


# A shell that starts the tests in the background makes all processes ignore SIGINT.
START = """
import os, signal, sys
os.nice(10)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def start_command(config: Path, folder: Path, *overrides: str) -> subprocess.Popen:
    """Starts `lmx data build` with two workers, at low priority."""
    return subprocess.Popen(
        [sys.executable, "-c", START, "-m", "lmx.cli.main", "data", "build", config]
        + [folder, "ProcessPool.workers=2", *overrides],
        env={**os.environ, "PYTHONPATH": f"{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def is_running(group: int) -> bool:
    """Whether any process of the group runs; zombies do not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


def build_and_signal(
    config: Path, folder: Path, signum: signal.Signals, shards: int
) -> tuple:
    """Sends a signal once there are `shards` files. Returns status and stderr.

    The build runs in slices of a millisecond and is stopped while files are counted, so
    that it cannot finish before the signal.
    """
    process = start_command(config, folder)
    deadline = time.monotonic() + TIMEOUT
    while len(list(folder.glob("tokens-*"))) < shards:
        os.killpg(process.pid, signal.SIGCONT)
        time.sleep(0.001)
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        os.killpg(process.pid, signal.SIGSTOP)
    process.send_signal(signum)
    os.killpg(process.pid, signal.SIGCONT)
    _, stderr = process.communicate(timeout=TIMEOUT)
    while is_running(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process.returncode, stderr


def test_a_parallel_build_that_is_stopped_and_killed_ends_in_the_same_bytes(
    config, reference, tmp_path
):
    folder = tmp_path / "store"
    status, stderr = build_and_signal(config, folder, signal.SIGINT, 1)
    assert status == 130
    assert f"interrupted\nthe same command resumes: {folder}" in stderr
    assert build_and_signal(config, folder, signal.SIGKILL, 5)[0] == -signal.SIGKILL
    stdout, stderr = (process := start_command(config, folder, "--json")).communicate()
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["documents"] == open_store(reference).documents
    assert read_files(folder) == read_files(reference)


@pytest.mark.nightly
def test_a_command_killed_twenty_times_ends_in_the_same_bytes(
    config, reference, tmp_path
):
    rng, folder = random.Random(3), tmp_path / "store"
    expected = read_files(reference)
    shards = sum(name.startswith("tokens-") for name in expected)
    for kill in range(20):
        if len(list(folder.glob("tokens-*"))) == shards:
            folder = tmp_path / f"store-{kill}"
        build_and_signal(config, folder, signal.SIGKILL, rng.randrange(shards))
        time.sleep(rng.uniform(0, 0.01))
    _, stderr = (process := start_command(config, folder)).communicate()
    assert process.returncode == 0, stderr
    assert read_files(folder) == expected
