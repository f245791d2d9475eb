"""Startup rendezvous and joint exit of several processes."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lmx.core.rendezvous import (
    ClusterConfigError,
    PeerLostError,
    ProcessInfo,
    Rendezvous,
)

ROOT = Path(__file__).parents[2]

# A process that joins, prints its pid, and leaves or aborts when it reads a line.
MEMBER = """
import os, sys
from lmx.core.rendezvous import *
process, processes, address, config, timeout = sys.argv[1:]
try:
    info = ProcessInfo(int(process), int(processes), address)
    rendezvous = Rendezvous.join(info, {"config": config}, float(timeout))
except (PeerLostError, ClusterConfigError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(os.getpid(), flush=True)
if reason := sys.stdin.readline().strip():
    rendezvous.abort(2, reason)
rendezvous.leave()
print("left")
"""


@pytest.fixture
def address():
    """A free port of this machine."""
    with socket.create_server(("", 0)) as server:
        return f"localhost:{server.getsockname()[1]}"


@pytest.fixture
def start(address):
    """Starts a process with that index; all are killed after the test."""
    started = []

    def start(process, processes=3, config="a", timeout=30.0):
        arguments = map(str, [process, processes, address, config, timeout])
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", MEMBER, *arguments],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def release(process, reason=""):
    """Makes a process leave, or abort for that reason."""
    process.stdin.write(f"{reason}\n")
    process.stdin.flush()


def wait_for_exit(process):
    """Exit status, last line of stdout, and stderr."""
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout.split()[-1:], stderr.strip()


def wait_for_join(process):
    """The pid of a process, once it has joined."""
    return int(process.stdout.readline())


def test_processes_join_with_the_last_and_leave_with_the_last(start):
    last = start(2)
    others = [start(0), start(1)]
    for member in [last, *others]:
        wait_for_join(member)
    for member in others:
        release(member)
    time.sleep(0.2)
    assert [member.poll() for member in others] == [None, None]
    release(last)
    assert [wait_for_exit(m) for m in [last, *others]] == [(0, ["left"], "")] * 3


def test_missing_processes_are_named_with_those_that_joined(start):
    joined = [start(0, 5, timeout=1.5), start(3, 5)]
    host = socket.gethostname()
    for member in joined:
        status, _, stderr = wait_for_exit(member)
        assert status == 1  # of MEMBER
        expected = "PeerLostError: 3 of 5 processes did not join within 2 s: 1, 2, 4."
        assert stderr.startswith(expected)
        assert f"process 3 ({host}, pid {joined[1].pid})" in stderr


def test_an_unreachable_leader_is_named_with_its_address(address):
    match = f"process 1 cannot reach process 0 at {address}"
    with pytest.raises(PeerLostError, match=match):
        Rendezvous.join(ProcessInfo(1, 2, address), {}, 0.3)


def test_a_leader_that_never_answers_is_left_at_the_deadline(address, monkeypatch):
    """Another program listens at the port of the coordinator, and says nothing."""
    monkeypatch.setattr("lmx.core.rendezvous.HANDSHAKE_TIMEOUT", 0.1)
    port = int(address.rpartition(":")[2])
    start = time.monotonic()
    with socket.create_server(("", port)):
        with pytest.raises(PeerLostError, match="what listens there sends no answer"):
            Rendezvous.join(ProcessInfo(1, 2, address), {}, 0.3)
    assert time.monotonic() - start < 5.0


STRANGER = {"process_id": 1, "num_processes": 2, "host": "h", "pid": 7}


def test_strangers_are_refused_and_logged_once_and_the_leader_waits_on(start, address):
    """Whatever they send; a whole handshake of another run ended process 0."""
    leader = start(0, 2)
    own = STRANGER | {"must_match": {"config": "a"}}
    messages = {
        "process_id must be int, got None": {},
        "process_id must be int, got ()": {name: [] for name in STRANGER},
        "no process of this lmx": own | {"token": "x"},
        "differs from process 0 in config": own | {"must_match": {"config": "b"}},
        "have the same index": own | {"process_id": 0},
        "pid 7) is none of 2 processes": own | {"process_id": 2},
    }
    wait_for_listener(address)
    host, port = address.split(":")
    for reason, message in [*messages.items()] * 2:
        with socket.create_connection((host, int(port)), 30.0) as stranger:
            stranger.sendall(json.dumps(message).encode() + b"\n")
            status, answer = json.loads(stranger.makefile().read())["error"]
            assert status == 2 and reason in answer
    other = start(1, 2)
    for process in (leader, other):
        wait_for_join(process)
        release(process)
    status, out, stderr = wait_for_exit(leader)
    assert (status, out) == (0, ["left"])
    for line, reason in zip(stderr.splitlines(), messages, strict=True):
        assert "warning: refused a connection from " in line and reason in line


def test_a_handshake_sent_byte_by_byte_is_refused_at_its_deadline(address, monkeypatch):
    """Each byte comes in time, and all of them would take 10 s."""
    monkeypatch.setattr("lmx.core.rendezvous.HANDSHAKE_TIMEOUT", 0.3)
    host, port = address.split(":")
    start = time.monotonic()

    def trickle():
        wait_for_listener(address)
        with socket.create_connection((host, int(port))) as stranger:
            with contextlib.suppress(OSError):
                while time.monotonic() < start + 10:
                    stranger.sendall(b" ")
                    time.sleep(0.05)

    thread = threading.Thread(target=trickle)
    thread.start()
    with pytest.raises(PeerLostError, match="Refused: a connection from "):
        Rendezvous.join(ProcessInfo(0, 2, address), {}, 0.6)
    assert time.monotonic() - start < 5.0
    thread.join(20)


def test_processes_that_disagree_are_refused_on_both_sides(start, address):
    leader = start(0)
    match = "was started with 4 processes, process 0 .* with 3"
    with pytest.raises(ClusterConfigError, match=match) as refused:
        Rendezvous.join(ProcessInfo(1, 4, address), {"config": "a"}, 30.0)
    assert f"ClusterConfigError: {refused.value}" in wait_for_exit(leader)[2]


def test_a_second_leader_cannot_listen(start, address):
    start(0)
    wait_for_listener(address)
    with pytest.raises(ClusterConfigError, match="cannot listen at port"):
        Rendezvous.join(ProcessInfo(0, 3, address), {}, 30.0)


def test_another_config_is_refused_at_once_and_named_by_the_leader_in_the_end(
    start, address
):
    leader = start(0, 2, timeout=2.0)
    match = "process 1 differs from process 0 in config: start all .* same command"
    with pytest.raises(ClusterConfigError, match=match) as refused:
        Rendezvous.join(ProcessInfo(1, 2, address), {"config": "b"}, 30.0)
    status, _, stderr = wait_for_exit(leader)
    assert status == 1  # of MEMBER
    log, error = stderr.splitlines()
    assert f"{refused.value}" in log and "warning: refused" in log
    assert "1 of 2 processes did not join" in error and f"{refused.value}" in error


def test_a_process_that_dies_before_all_joined_is_replaced_by_its_restart(start):
    leader, dead = start(0), start(1)
    time.sleep(1.0)  # it has joined, or has not been started
    dead.kill()
    dead.wait()
    members = [leader, start(1), start(2)]
    for member in members:
        wait_for_join(member)
        release(member)
    assert [wait_for_exit(member) for member in members] == [(0, ["left"], "")] * 3


def wait_for_listener(address):
    """Connects, as a process that is not of lmx, once somebody listens there."""
    host, port = address.split(":")
    for _ in range(600):
        try:
            return socket.create_connection((host, int(port))).close()
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(address)


def test_two_processes_with_the_same_index_are_both_named(start):
    leader, one, other = start(0), start(1), start(1)
    while one.poll() is None is other.poll():
        time.sleep(0.05)
    leader.kill()
    stderr = wait_for_exit(leader)[2]
    for member in (one, other):
        assert f"pid {member.pid}" in stderr
    assert "have the same index: set --process in each" in stderr


@pytest.mark.parametrize("killed", [0, 1])
def test_if_one_is_killed_the_others_name_it_and_exit_with_75(start, killed):
    members = [start(process) for process in range(3)]
    pids = [wait_for_join(member) for member in members]
    members.pop(killed).kill()
    begin = time.monotonic()
    for member in members:
        status, _, stderr = wait_for_exit(member)
        assert status == 75
        assert f"process {killed} (" in stderr and f"pid {pids[killed]}) died" in stderr
    assert time.monotonic() - begin < 10.0


@pytest.mark.parametrize("first", [0, 2])
def test_if_one_aborts_the_others_print_its_reason_and_exit_with_its_status(
    start, first
):
    members = [start(process) for process in range(3)]
    for member in members:
        wait_for_join(member)
    release(members[first], "no such file")
    exits = [wait_for_exit(member) for member in members]
    assert exits.pop(first) == (2, [], "")
    assert exits == [(2, [], "error: no such file")] * 2


@pytest.mark.parametrize("address", ["4321", "node:", "node:x"])
def test_an_address_without_host_or_port_is_refused(address):
    with pytest.raises(ClusterConfigError, match="is not HOST:PORT"):
        Rendezvous.join(ProcessInfo(1, 2, address), {}, 1.0)
