"""Of two processes that want to write to a folder, one does."""

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
from lmx.run import lock as module
from lmx.run.lock import LEASE, LOCK, Lease, Lock, acquire_lock

ROOT = Path(__file__).parents[3]
TERM = 2.0  # seconds
# Takes a folder, says so, and lets go of it when its input ends.
HOLDER = f"""
import sys
from pathlib import Path
from lmx.run.lock import Lease, Lock
folder, kind = Path(sys.argv[1]), sys.argv[2]
try:
    held = Lock(folder) if kind == "lock" else Lease(folder, {TERM})
except ValueError as error:
    sys.exit(str(error))
print("mine", flush=True)
sys.stdin.read()
held.release()
"""


@pytest.fixture
def hold(tmp_path):
    """Starts a process that wants the folder; all are gone after the test."""
    started = []

    def hold(kind):
        command = [sys.executable, "-c", HOLDER, str(tmp_path), kind]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started.append(subprocess.Popen(command, cwd=ROOT, text=True, **pipes))
        return started[-1]

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def has_it(process):
    return process.stdout.readline() == "mine\n"


@pytest.mark.parametrize("kind, take", [("lock", Lock), ("lease", Lease)])
def test_the_second_is_refused_and_told_who_has_it(hold, tmp_path, kind, take):
    first = hold(kind)
    assert has_it(first)
    with pytest.raises(ConfigError) as refused:
        take(tmp_path)
    who = f"written by process {first.pid} of {socket.gethostname()} since 20"
    assert who in str(refused.value) and "--run" in str(refused.value)
    second = hold(kind)
    assert who in second.communicate()[1] and second.returncode == 1
    first.communicate("")
    assert first.returncode == 0 and not list(tmp_path.iterdir())
    assert has_it(hold(kind))


@pytest.mark.parametrize("kind", ["lock", "lease"])
def test_what_a_killed_process_held_can_be_had(hold, kind):
    first = hold(kind)
    assert has_it(first)
    first.kill()
    first.wait()
    began = time.monotonic()
    assert has_it(hold(kind))
    assert kind == "lock" or time.monotonic() - began > TERM


def test_of_two_that_wait_for_a_lease_one_gets_it(hold):
    first = hold("lease")
    assert has_it(first)
    first.kill()
    ends = [(p, p.stdout.readline()) for p in [hold("lease"), hold("lease")]]
    assert sorted(said for _, said in ends) == ["", "mine\n"]


def test_who_was_away_so_long_that_the_lease_was_taken_ends_with_75(hold):
    first = hold("lease")
    assert has_it(first)
    first.send_signal(signal.SIGSTOP)
    assert has_it(hold("lease"))
    first.send_signal(signal.SIGCONT)
    assert first.wait(timeout=30) == 75
    assert "was taken over" in first.stderr.read()


def test_where_files_have_no_locks_there_is_a_lease(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    held = acquire_lock(tmp_path)
    assert isinstance(held, Lease)
    assert json.loads((tmp_path / LEASE).read_text())["pid"] == os.getpid()
    held.release()


def test_on_a_mounted_bucket_there_is_a_lease_and_elsewhere_a_lock(
    tmp_path, monkeypatch
):
    mounts = tmp_path / "mounts"
    monkeypatch.setattr(module, "MOUNTS", mounts)
    for kind, wanted in {"fuse.gcsfuse": Lease, "ext4": Lock}.items():
        mounts.write_text(f"none / ext4 rw 0 0\nx {tmp_path.resolve()} {kind} rw 0 0\n")
        held = acquire_lock(tmp_path)
        assert type(held) is wanted
        held.release()
    assert not (tmp_path / LOCK).exists()
