"""A store whose building is killed again and again is the bytes of one that was not."""

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
PATIENCE = 300.0  # seconds, on a machine that has much else to do
PAGE = """
BuildTokenStore:
  sources = {'lines': @lines/Text(), 'files': @files/Text()}
  tokenizer = @ByteTokenizer()
  filters = [@LengthFilter()]
  shard_bytes = 60000
  executor = @ProcessPool()
ProcessPool.workers = 1
LengthFilter.min_chars = 30
"""


def texts(chance: random.Random, count: int) -> list[str]:
    """Texts that all differ."""
    return [
        f"{number} " + "".join(chance.choices("ab cdé\n", k=chance.randrange(1, 900)))
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A page of two sources: lines of one file, and small files."""
    work, chance = tmp_path_factory.mktemp("build"), random.Random(1)
    (work / "files").mkdir()
    lines = [json.dumps({"text": text}) + "\n" for text in texts(chance, 2000)]
    (work / "lines.jsonl").write_text("".join(lines))
    for number, text in enumerate(texts(chance, 400)):
        (work / "files" / f"{number:03}.txt").write_text(text)
    bindings = f"{PAGE}lines/Text.path = '{work / 'lines.jsonl'}'\n"
    bindings += f"files/Text.path = '{work / 'files'}'\n"
    (work / "page.gin").write_text(bindings)
    return work / "page.gin"


@pytest.fixture(scope="module")
def reference(page, tmp_path_factory) -> Path:
    """The folder of a store whose building nobody disturbed."""
    folder = tmp_path_factory.mktemp("reference") / "store"
    load([page], root=BuildTokenStore).build().write(folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, hidden ones too."""
    return {
        f"{path.relative_to(folder)}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def text_of(tokens: np.ndarray) -> str:
    """What bytes between begin and end say."""
    return tokens[1:-1].astype(np.uint8).tobytes().decode()


def killed(page: Path, root: Path, how: str, *words: str) -> dict[str, int]:
    """What `killer.py` came to."""
    killer = ROOT / "tests" / "faults" / "killer.py"
    process = subprocess.run(
        [sys.executable, killer, page, root, how, *words],
        env={**os.environ, "PYTHONPATH": f"{ROOT}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_no_document_is_lost_or_doubled(page, reference):
    store = open_store(reference)
    found = [text_of(store.read_document(number)) for number in range(store.documents)]
    build = load([page], root=BuildTokenStore).build()
    every = [d for c in build.sources.values() for d in c.read_nonempty("train")]
    kept = [d.text for d in every if isinstance(build.filters[0](d), Document)]
    assert found == kept and len(set(found)) == len(found) > 2000


def test_killed_at_twenty_random_moments_it_ends_in_the_same_bytes(
    page, reference, tmp_path
):
    came = killed(page, tmp_path, "moments")
    assert came["kills"] >= 20
    wanted = content(reference)
    for number in range(came["stores"]):
        assert content(tmp_path / f"{number}") == wanted


def test_killed_before_and_after_each_rename_it_ends_in_the_same_bytes(page, tmp_path):
    few = [
        "BuildTokenStore.sources={'files': @files/Text()}",
        "BuildTokenStore.shard_bytes=100000",
    ]
    load([page], few, root=BuildTokenStore).build().write(tmp_path / "whole")
    wanted = content(tmp_path / "whole")
    shards = sum(name.startswith("tokens-") for name in wanted)
    others = 5  # the plan, the tokenizer, records of shards, starts, the manifest
    came = killed(page, tmp_path, "renames", *few)
    assert came["kills"] == 2 * (3 * shards + others)
    for number in range(came["stores"]):
        assert content(tmp_path / f"{number}") == wanted


def command(page: Path, folder: Path, *words: str) -> subprocess.Popen:
    """`lmx data build`, with two processes that give way to whoever watches them."""
    return subprocess.Popen(
        ["nice", sys.executable, "-m", "lmx.cli.main", "data", "build", page, folder]
        + ["ProcessPool.workers=2", *words],
        env={**os.environ, "PYTHONPATH": f"{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def alive(group: int) -> bool:
    """Whether any process of the group runs: one that is over does not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


def stopped(page: Path, folder: Path, signum: signal.Signals, shards: int) -> tuple:
    """Builds until there are so many shards; the status after a signal, and words."""
    process = command(page, folder)
    patience = time.monotonic() + PATIENCE
    while len(list(folder.glob("tokens-*"))) < shards:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < patience
        time.sleep(0.001)
    process.send_signal(signum)
    _, moaned = process.communicate(timeout=PATIENCE)
    while alive(process.pid):
        assert time.monotonic() < patience
        time.sleep(0.01)
    return process.returncode, moaned


def test_two_processes_stopped_and_killed_end_in_the_same_bytes(
    page, reference, tmp_path
):
    for count in range(9):  # some may be built before the signal comes
        folder = tmp_path / f"store-{count}"
        status, moaned = stopped(page, folder, signal.SIGINT, 1)
        if status:
            break
    assert status == 130
    assert f"stopped; the same command goes on: {folder}" in moaned
    assert stopped(page, folder, signal.SIGKILL, 5)[0] == -signal.SIGKILL
    said, moaned = (process := command(page, folder, "--json")).communicate()
    assert process.returncode == 0, moaned
    assert json.loads(said)["documents"] == open_store(reference).documents
    assert content(folder) == content(reference)


@pytest.mark.nightly
def test_the_command_killed_twenty_times_ends_in_the_same_bytes(
    page, reference, tmp_path
):
    chance, folder = random.Random(3), tmp_path / "store"
    wanted = content(reference)
    shards = sum(name.startswith("tokens-") for name in wanted)
    for kill in range(20):
        if len(list(folder.glob("tokens-*"))) == shards:
            folder = tmp_path / f"store-{kill}"
        stopped(page, folder, signal.SIGKILL, chance.randrange(shards))
        time.sleep(chance.uniform(0, 0.01))
    said, moaned = (process := command(page, folder)).communicate()
    assert process.returncode == 0, moaned
    assert content(folder) == wanted
