"""Faults during one attempt of a run."""

import json
import os
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from lmx.config.resolve import load
from lmx.data.store.build import BuildTokenStore
from lmx.run.goodput import total_seconds
from lmx.run.run_dir import METRICS, read_ledger, read_metrics
from lmx.train.checkpoint.manager import CheckpointManager
from tests.faults.trainer import copy_config, start, wait_for_exit

pytestmark = pytest.mark.faults


@pytest.fixture
def cloud():
    """The answers of a metadata server, and its address."""
    answers = {"maintenance-event": "NONE", "preempted": "FALSE"}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            answer = answers[self.path.removeprefix("/computeMetadata/v1/instance/")]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, format, *args):
            pass

    with HTTPServer(("localhost", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield answers, f"localhost:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run that nothing disturbs, under a strict umask."""
    work, before = copy_config(tmp_path_factory.mktemp("undisturbed")), os.umask(0o027)
    try:
        process = start(work, "a")
    finally:
        os.umask(before)
    status, stderr = wait_for_exit(process)
    assert status == 0, stderr
    return work / "a"


def saved(path):
    return CheckpointManager(path / "checkpoints", 2).list_steps()


def test_a_hanging_run_ends_within_the_grace_or_at_the_second_signal(trainer, tmp_path):
    first = trainer.gated("--run", "a", "--grace", 1.5, at="6")
    trainer.reach(first, 6)
    (tmp_path / "at-6").unlink()
    second = trainer.gated("--run", "b", at="6")
    began = time.monotonic()
    first.send_signal(signal.SIGTERM)
    status, stderr = wait_for_exit(first)
    assert status == 143 and "not saved within 1.5 s: stopped at once" in stderr
    assert 1.5 <= time.monotonic() - began < 5.0
    trainer.reach(second, 6)
    second.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(1.0)
    second.send_signal(signal.SIGTERM)
    began = time.monotonic()
    status, stderr = wait_for_exit(second)
    assert status == 143 and stderr.endswith("stopped at once\n")
    assert time.monotonic() - began < 3.0
    assert saved(tmp_path / "a") == saved(tmp_path / "b") == [4]


def test_a_second_trainer_is_refused_a_notice_saves_and_a_failed_hook_runs_again(
    trainer, cloud, tmp_path
):
    answers, host = cloud
    words = ["--run", "a"]
    first = trainer.gated(*words, at="3, 8", GCE_METADATA_HOST=host)
    trainer.reach(first, 3)
    status, stderr = wait_for_exit(trainer.gated(*words, at="3, 8"))
    assert status == 2
    assert f"a is being written by process {first.pid} of " in stderr
    assert "wait for it or stop it, or name another folder" in stderr
    answers["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
    time.sleep(7.0)  # it asks every 5
    trainer.go(3)
    status, stderr = wait_for_exit(first)
    assert status == 143
    assert "this machine is being preempted (maintenance-event: TERM" in stderr
    (step,) = saved(tmp_path / "a")
    assert 3 <= step < 8 and f"stopped by SIGTERM after step {step}" in stderr

    trainer.go(8, "fail")  # where there is a save too
    status, stderr = wait_for_exit(trainer.gated(*words, at="3, 8"))
    assert status == 1
    assert (
        "ValueError: requested by the test\n@Gate failed after step 8, and is" in stderr
    )
    assert read_ledger(tmp_path / "a")[-1]["status"] == "failed"
    assert saved(tmp_path / "a")[-1] == 8
    trainer.go(8)
    status, stderr = wait_for_exit(trainer.gated(*words, at="3, 8"))
    assert status == 0, stderr
    gates = [(r["step"], r["status"]) for r in read_ledger(tmp_path / "a")]
    assert gates.count((8, "done")) == 1 and (3, "done") in gates
    assert [row["step"] for row in read_metrics(tmp_path / "a")] == list(range(1, 11))


def test_partial_lines_and_clock_jumps_change_nothing(trainer, tmp_path, undisturbed):
    """Killed within a line of each record, then a day ahead, a day back, and ahead."""
    first = trainer.gated("--run", "a", at="6")
    trainer.reach(first, 6)
    first.kill()
    first.wait()
    for name in (METRICS, "ledger.jsonl", "timing.jsonl"):
        with (tmp_path / "a" / name).open("a") as file:
            file.write('{"step": 6, "lo')
    began = time.monotonic()
    jumps = ["Experiment.hooks=[@Jump()]", "Jump.ahead=(5, 9)", "Jump.back=(7,)"]
    status, stderr = wait_for_exit(
        trainer.start("--import", "gates", *jumps, "--run", "a")
    )
    assert status == 0, stderr
    reference, found = (
        list(read_metrics(path)) for path in (undisturbed, tmp_path / "a")
    )
    losses = [
        [(row["step"], row["loss"]) for row in rows] for rows in (reference, found)
    ]
    assert losses[0] == losses[1]
    seconds = total_seconds(tmp_path / "a")
    assert min(seconds.values()) >= 0.0
    assert sum(seconds.values()) < time.monotonic() - began + 60.0
    assert saved(tmp_path / "a")[-1] == 10, stderr  # a save in progress may fail


@pytest.fixture
def disk(tmp_path):
    """A disk of 4 MB, mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    subprocess.run(mount, check=True)
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_no_metric_is_lost_while_the_disk_is_full(trainer, disk):
    words = ["--run", disk / "a", "CheckpointPolicy.every=20", "Experiment.steps=40"]
    run = trainer.gated(*words, at="5, 30")
    trainer.reach(run, 5)
    with (disk / "ballast").open("wb", buffering=0) as ballast:
        with pytest.raises(OSError):
            while ballast.write(bytes(256)):
                pass
    trainer.go(5)
    trainer.reach(run, 30)
    assert len(list(read_metrics(disk / "a"))) < 25
    (disk / "ballast").unlink()
    trainer.go(30)
    status, stderr = wait_for_exit(run)
    assert status == 0, stderr
    assert [row["step"] for row in read_metrics(disk / "a")] == list(range(1, 41))
    assert stderr.count("metrics.jsonl cannot be written (No space left on") == 1
    done = [
        r
        for r in read_ledger(disk / "a")
        if (r["hook"], r["status"]) == ("Gate", "done")
    ]
    assert [row["step"] for row in done] == [5, 30]


def test_changes_are_listed_and_refused_unless_they_are_allowed(trainer, tmp_path):
    words = ["--run", "a", "Experiment.log_every=5"]
    assert wait_for_exit(trainer.start(*words))[0] == 0
    more = [
        *words,
        "Experiment.steps=12",
        "RepeatTask.batch_size=4",
        "Experiment.log_every=2",
    ]
    status, stderr = wait_for_exit(
        trainer.start(*more, "--allow-change", "Experiment.steps")
    )
    assert status == 2 and "  data.batch_size: 8 before, 4 now" in stderr
    assert "steps: 10" not in stderr and "log_every" not in stderr
    accept = ["--allow-change", "Experiment.steps", "--allow-change", "data"]
    status, stderr = wait_for_exit(trainer.start(*more, *accept))
    assert status == 0, stderr
    metadata = json.loads((tmp_path / "a" / "metadata.json").read_text())
    assert {change["name"] for change in metadata["allowed_changes"]} >= {
        "steps",
        "data.batch_size",
    }
    assert metadata["final"]["step"] == 12


def test_a_damaged_or_missing_shard_is_named_before_the_first_step(trainer, tmp_path):
    page, text = tmp_path / "build.gin", tmp_path / "text.txt"
    text.write_text("To be or not to be, that is the question.\n" * 400)
    page.write_text(f"""
BuildTokenStore:
  sources = {{'a': @Text()}}
  tokenizer = @ByteTokenizer()
  executor = @ProcessPool()
ProcessPool.workers = 1
Text.path = '{text}'
Text.holdout = @HoldoutDocuments()
HoldoutDocuments.fraction = 0.0
""")
    load([page], [], root=BuildTokenStore).build().write(tmp_path / "store")
    words = [
        "Experiment.data=@TokenStoreDataset()",
        "TokenStoreDataset.path=store",
        "TokenStoreDataset.batch_size=8",
    ]
    words += ["TokenStoreDataset.sequence_length=16", "Decoder.vocab=258", "--run", "a"]
    status, stderr = wait_for_exit(trainer.start(*words, "Experiment.steps=4"))
    assert status == 0, stderr
    shard = tmp_path / "store" / "tokens-00000.bin"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    status, stderr = wait_for_exit(trainer.start(*words, "Experiment.steps=4"))
    assert status == 2 and f"error: {Path('store', shard.name)} is damaged" in stderr
    shard.unlink()
    status, stderr = wait_for_exit(trainer.start(*words, "Experiment.steps=4"))
    assert status == 2 and f"error: {Path('store', shard.name)} ends at" in stderr
    assert saved(tmp_path / "a") == [4]


def test_a_corrupt_compilation_cache_changes_nothing(trainer, tmp_path):
    """Entries cut short, or without their header.

    JAX keeps no checksum of an entry: a flipped bit inside of one can end XLA.
    """
    cache = tmp_path / "cache"
    environment = {"JAX_COMPILATION_CACHE_DIR": str(cache)} | dict.fromkeys(
        (
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES",
        ),
        "0",
    )
    assert wait_for_exit(trainer.start("--run", "a", **environment))[0] == 0
    files = [file for file in cache.rglob("*-cache") if file.is_file()]
    assert len(files) > 2
    for index, file in enumerate(files):
        content = file.read_bytes()
        half = content[: len(content) // 2]
        file.write_bytes(half if index % 2 else bytes(64) + content[64:])
    status, stderr = wait_for_exit(trainer.start("--run", "b", **environment))
    assert status == 0, stderr
    losses = [[row["loss"] for row in read_metrics(tmp_path / run)] for run in "ab"]
    assert losses[0] == losses[1]


def test_files_of_a_run_follow_the_umask(undisturbed):
    for path in [undisturbed, *undisturbed.rglob("*")]:
        wanted = 0o750 if path.is_dir() else 0o640
        assert path.stat().st_mode & 0o777 == wanted, path
