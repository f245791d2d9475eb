"""Processes that meet, and end together."""

import socket
import subprocess
import sys
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

# A process that comes, says so, does what it is told on a line, and leaves.
GUEST = """
import os, sys
from lmx.core.rendezvous import Lobby, LostError, Seat, SeatError
process, processes, address, page, wait = sys.argv[1:]
try:
    seat = Seat(int(process), int(processes), address)
    lobby = Rendezvous.join(seat, {"page": page}, float(wait))
except (LostError, SeatError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
print("in", os.getpid(), flush=True)
if why := sys.stdin.readline().strip():
    lobby.end(2, why)
lobby.leave()
print("out")
"""


@pytest.fixture
def address():
    """Where nobody listens."""
    with socket.create_server(("", 0)) as door:
        return f"localhost:{door.getsockname()[1]}"


@pytest.fixture
def come(address):
    """Starts the process of that number; all are gone after the test."""
    started = []

    def come(process, processes=3, page="a", wait=30.0):
        words = [process, processes, address, page, wait]
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", GUEST, *map(str, words)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield come
    for process in started:
        process.kill()
        process.communicate()


def tell(process, line=""):
    """Has a process leave, or end for that reason."""
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def ended(process):
    """What became of a process: status, last word, complaint."""
    said, moaned = process.communicate(timeout=60)
    return process.returncode, said.split()[-1:], moaned.strip()


def inside(process):
    """Waits until it is in; its pid."""
    word, pid = process.stdout.readline().split()
    assert word == "in"
    return int(pid)


def test_all_go_in_when_the_last_has_come_and_out_when_the_last_leaves(come):
    late = come(2)
    others = [come(0), come(1)]
    for guest in [late, *others]:
        inside(guest)
    for guest in others:
        tell(guest)
    time.sleep(0.2)
    assert [guest.poll() for guest in others] == [None, None]  # they wait for the last
    tell(late)
    assert [ended(guest) for guest in [late, *others]] == [(0, ["out"], "")] * 3


def test_who_is_missing_is_named_with_those_who_are_there(come):
    there = [come(0, 5, wait=1.5), come(3, 5)]
    host = socket.gethostname()
    for guest in there:
        status, _, moaned = ended(guest)
        assert status == 1  # of this test's GUEST
        assert moaned.startswith("LostError: 3 of 5 processes did not come within 2 s:")
        assert "1, 2, 4. There are process 0" in moaned
        assert f"process 3 ({host}, pid {there[1].pid})" in moaned


def test_a_process_that_cannot_reach_the_first_says_where_it_looked(address):
    with pytest.raises(
        PeerLostError, match=f"process 1 cannot reach process 0 at {address}"
    ):
        Rendezvous.join(ProcessInfo(1, 2, address), {}, 0.3)


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ((1, 3, "b"), "is not as process 0 .* is: page is b and not a"),
        ((1, 4, "a"), "was told of 4 processes, process 0 .* of 3"),
        ((0, 3, "a"), "cannot listen at port"),
    ],
)
def test_processes_that_were_told_otherwise_are_named(come, other, complaint, address):
    first = come(0)
    with pytest.raises(ClusterConfigError, match=complaint) as refused:
        process, processes, page = other
        if process == 0:
            wait_for(address)
        Rendezvous.join(ProcessInfo(process, processes, address), {"page": page}, 30.0)
    if other[0]:
        assert f"ClusterConfigError:{refused.value}" in ended(first)[2]


def wait_for(address):
    """Until somebody listens there. It is no guest, and goes."""
    host, port = address.split(":")
    for _ in range(600):
        try:
            return socket.create_connection((host, int(port))).close()
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(address)


def test_two_with_one_number_are_both_named(come):
    first, one, other = come(0), come(1), come(1)
    moaned = ended(first)[2]
    for guest in (one, other):
        assert f"pid {guest.pid}" in moaned
    assert "have one number: give each its own" in moaned


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_others_say_who_and_exit_with_75(come, victim):
    guests = [come(process) for process in range(3)]
    pids = [inside(guest) for guest in guests]
    guests.pop(victim).kill()
    begun = time.monotonic()
    for guest in guests:
        status, _, moaned = ended(guest)
        assert status == 75
        assert f"process {victim} (" in moaned and f"pid {pids[victim]}" in moaned
        assert "is gone" in moaned
    assert time.monotonic() - begun < 10.0


@pytest.mark.parametrize("first", [0, 2])
def test_when_one_ends_for_a_reason_the_others_give_it_and_its_status(come, first):
    guests = [come(process) for process in range(3)]
    for guest in guests:
        inside(guest)
    tell(guests[first], "no such file")
    found = [ended(guest) for guest in guests]
    assert found.pop(first) == (2, [], "")
    assert found == [(2, [], "error: no such file")] * 2


@pytest.mark.parametrize("address", ["4321", "node:", "node:x"])
def test_an_address_without_host_or_port_is_refused(address):
    with pytest.raises(ClusterConfigError, match="is no HOST:PORT"):
        Rendezvous.join(ProcessInfo(1, 2, address), {}, 1.0)
