"""One process at a time writes to the folder of a run."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmx.config.registry import ConfigError
from lmx.run import lock
from lmx.run.lock import LEASE, Lease, Lock, acquire_lock

ROOT = Path(__file__).parents[2]
DURATION = 2.0  # seconds, of a lease
# Acquires the folder, says so, and releases it when its input ends.
HOLDER = f"""
import sys
from pathlib import Path
from lmx.run.lock import Lease, Lock
folder, kind = Path(sys.argv[1]), sys.argv[2]
try:
    lock = Lock(folder) if kind == "lock" else Lease(folder, {DURATION})
except ValueError as error:
    sys.exit(str(error))
print("acquired", flush=True)
sys.stdin.read()
lock.release()
"""


@pytest.fixture
def start(tmp_path):
    """Starts a process that acquires the folder; all are killed after the test."""
    started = []

    def start(kind):
        command = [sys.executable, "-c", HOLDER, str(tmp_path), kind]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started.append(subprocess.Popen(command, cwd=ROOT, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def acquires(process):
    return process.stdout.readline() == "acquired\n"


@pytest.mark.parametrize("kind, acquire", [("lock", Lock), ("lease", Lease)])
def test_the_second_process_is_refused_with_the_name_of_the_first(
    start, tmp_path, kind, acquire
):
    first = start(kind)
    assert acquires(first)
    with pytest.raises(ConfigError) as refused:
        acquire(tmp_path)
    holder = f"written by process {first.pid} of {socket.gethostname()} since 20"
    assert holder in str(refused.value) and "--run" in str(refused.value)
    second = start(kind)
    assert holder in second.communicate()[1] and second.returncode == 1
    first.communicate("")
    assert first.returncode == 0 and not list(tmp_path.iterdir())
    assert acquires(start(kind))


@pytest.mark.parametrize("kind", ["lock", "lease"])
def test_the_folder_of_a_killed_process_can_be_acquired(start, kind):
    first = start(kind)
    assert acquires(first)
    first.kill()
    first.wait()
    killed = time.monotonic()
    assert acquires(start(kind))
    assert kind == "lock" or time.monotonic() - killed > DURATION


def test_one_of_two_processes_that_wait_for_a_lease_gets_it(start):
    first = start("lease")
    assert acquires(first)
    first.kill()
    waiting = [start("lease"), start("lease")]
    assert sorted(process.stdout.readline() for process in waiting) == [
        "",
        "acquired\n",
    ]


def test_a_suspended_process_whose_lease_was_taken_over_exits_with_75(start):
    first = start("lease")
    assert acquires(first)
    first.send_signal(signal.SIGSTOP)
    assert acquires(start("lease"))
    first.send_signal(signal.SIGCONT)
    assert first.wait(timeout=30) == 75
    assert "was taken over" in first.stderr.read()


def test_without_file_locks_there_is_a_lease(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    lease = acquire_lock(tmp_path)
    assert isinstance(lease, Lease)
    assert json.loads((tmp_path / LEASE).read_text())["pid"] == os.getpid()
    lease.release()


def test_a_mounted_bucket_has_a_lease_and_other_file_systems_a_lock(
    tmp_path, monkeypatch
):
    mounts = tmp_path / "mounts"
    monkeypatch.setattr(lock, "MOUNTS", mounts)
    for filesystem, kind in {"fuse.gcsfuse": Lease, "ext4": Lock}.items():
        mounts.write_text(
            f"none / ext4 rw 0 0\nx {tmp_path.resolve()} {filesystem} rw 0 0\n"
        )
        acquired = acquire_lock(tmp_path)
        assert type(acquired) is kind
        acquired.release()
    assert [file.name for file in tmp_path.iterdir()] == ["mounts"]
