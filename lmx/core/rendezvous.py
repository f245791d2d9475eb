"""Startup rendezvous and peer-failure detection for multi-process runs."""

import contextlib
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from typing import Any, NoReturn, get_type_hints

from lmx.config.json_object import check_kinds
from lmx.config.registry import ConfigError, require
from lmx.core.console import print_line

EXIT_RESTART = 75  # exit status: a restart may help
SUPERVISOR = "LMX_SUPERVISOR"  # environment variable: the pid of what restarts a run
SUPERVISOR_PID = os.environ.pop(SUPERVISOR, None)  # not that of runs started from here
# Timeouts and intervals are in seconds.
BARRIER_TIMEOUT = 300.0  # between the first and the last process that leaves
LEADER_LINGER = 10.0  # the leader waits this long for its peers to exit
RETRY_INTERVAL = 0.1
HANDSHAKE_TIMEOUT = 5.0  # for a connecting process to identify itself
HEARTBEAT_INTERVAL = 10.0
# A stopped process keeps its connection open, so silence is limited too. C code that
# holds the GIL also delays heartbeats.
HEARTBEAT_TIMEOUT = 300.0
# A machine that lost power is detected after 40 s: by keepalive probes, or by data
# that it does not acknowledge (in milliseconds; Linux only).
KEEPALIVE = {
    "TCP_KEEPIDLE": 20,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 4,
    "TCP_USER_TIMEOUT": 40_000,
}


class PeerLostError(Exception):
    """A process did not join, or has exited. A restart may help."""

    exit_status = EXIT_RESTART


class ClusterConfigError(ValueError):
    """Inconsistent cluster configuration."""

    exit_status = 2


@dataclass(frozen=True)
class ProcessInfo:
    """Index of this process, number of processes and address of process 0."""

    process_id: int
    num_processes: int
    coordinator: str  # HOST:PORT
    local_device_ids: Sequence[int] | None = None  # None: all devices of this machine


@dataclass(frozen=True, eq=False)
class Peer:
    """A process as the others see it."""

    process_id: int
    num_processes: int
    host: str
    pid: int
    must_match: Mapping[str, str]  # digests that only processes of this run share

    def __str__(self):
        return f"process {self.process_id} ({ascii(self.host)[1:-1]}, pid {self.pid})"


class Rendezvous:
    """Connections between process 0, the leader, and every other process.

    If a process exits without leaving, every other process prints its reason and exits
    with its status, or with 75 if the process could not send one.
    """

    def __init__(self, info: ProcessInfo, peers: dict[socket.socket, Peer]):
        self.info, self.peers = info, peers
        self.all_left = threading.Event()
        self.exit_lock = threading.Lock()
        threading.Thread(target=self._monitor, daemon=True).start()

    @classmethod
    def join(
        cls, info: ProcessInfo, must_match: Mapping[str, str], timeout: float
    ) -> "Rendezvous":
        """Waits until all processes have joined.

        Raises PeerLostError if one does not join in time, ClusterConfigError if
        processes disagree about their number. One that differs from process 0 in
        `must_match`, or whose index is taken, may be of another run: ClusterConfigError
        is raised there, and process 0 waits on.
        """
        process, processes = info.process_id, info.num_processes
        me = Peer(process, processes, socket.gethostname(), os.getpid(), must_match)
        connect = _connect_to_leader if process else _accept_peers
        return cls(info, connect(me, info.coordinator, timeout))

    def leave(self) -> None:
        """Waits until all processes leave."""
        if self.info.process_id:
            self._broadcast(bye=True)
        if not self.all_left.wait(BARRIER_TIMEOUT):
            reason = f"not all processes finished within {BARRIER_TIMEOUT:.0f} s"
            self.abort(EXIT_RESTART, reason)
        if not self.info.process_id:
            self._broadcast(bye=True)

    def abort(self, status: int, reason: str, show: bool = False) -> NoReturn:
        """Exits this process with the status; the others print the reason and follow.

        Only the first call in a process takes effect.
        """
        with self.exit_lock:
            if show:
                print(f"error: {reason}", file=sys.stderr)
            self._broadcast(reason=reason, status=status)
            if not self.info.process_id:  # it serves jax's coordination service
                self._wait_for_exits()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _broadcast(self, **message: Any) -> None:
        for connection in self.peers:
            _send(connection, **message)

    def _monitor(self) -> None:
        """Aborts when a process disconnects, aborts or is silent for too long."""
        interval = min(HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT / 10)
        sent = time.monotonic()
        last_heard = dict.fromkeys(self.peers, sent)
        while last_heard:
            ready: list[Any] = wait([*last_heard], interval)
            for connection in ready:
                message = _receive(connection)
                last_heard[connection] = time.monotonic()
                if message.get("bye"):
                    del last_heard[connection]
                elif not message.get("alive"):
                    reason = message.get("reason", f"{self.peers[connection]} died")
                    self.abort(message.get("status", EXIT_RESTART), reason, show=True)
            if time.monotonic() - sent >= interval:
                self._broadcast(alive=True)
                sent = time.monotonic()
            for connection, heard in last_heard.items():
                if sent - heard > HEARTBEAT_TIMEOUT:
                    silence = f"sent nothing for {HEARTBEAT_TIMEOUT:.0f} s"
                    reason = f"{self.peers[connection]} {silence}"
                    self.abort(EXIT_RESTART, reason, show=True)
        self.all_left.set()

    def _wait_for_exits(self) -> None:
        deadline = time.monotonic() + LEADER_LINGER
        for connection in self.peers:
            with contextlib.suppress(OSError):
                connection.settimeout(_remaining(deadline))
                while connection.recv(4096):
                    pass


def _remaining(deadline: float) -> float:
    """Seconds to the deadline, as a timeout of a socket."""
    return max(deadline - time.monotonic(), 0.01)


def _accept_peers(me: Peer, address: str, timeout: float) -> dict[socket.socket, Peer]:
    """Connections to all other processes; each is sent the leader or an error."""
    peers: dict[socket.socket, Peer] = {}
    refusals: dict[str, None] = {}
    deadline = time.monotonic() + timeout
    try:
        with _listen(address, me.num_processes) as listener:
            while len(peers) < me.num_processes - 1:
                if time.monotonic() > deadline:
                    missing = _describe_missing([me, *peers.values()], timeout)
                    refused = "".join(f". Refused: {reason}" for reason in refusals)
                    raise PeerLostError(f"{missing}{refused}")
                listener.settimeout(_remaining(deadline))
                with contextlib.suppress(TimeoutError):
                    connection, source = listener.accept()
                    _accept(connection, f"{source[0]}", me, peers, refusals)
    except (PeerLostError, ClusterConfigError) as error:
        for connection in peers:
            _send(connection, error=(error.exit_status, f"{error}"))
            connection.close()
        raise
    for connection in peers:
        connection.settimeout(None)
        _enable_keepalive(connection)
        _send(connection, leader=asdict(me), error=None)
    return peers


def _accept(
    connection: socket.socket,
    host: str,
    me: Peer,
    peers: dict[socket.socket, Peer],
    refusals: dict[str, None],
) -> None:
    """Adds the peer of a connection; drops what is not of this run, and logs it once.

    Raises ClusterConfigError if a process of this run has another number of processes.
    """
    closed: list[Any] = wait([*peers], 0)  # of dead processes, which may be restarted
    for old in closed:
        del peers[old]
    connection.settimeout(HANDSHAKE_TIMEOUT)
    try:
        handshake = _receive(connection, HANDSHAKE_TIMEOUT)
        peer = _identify(handshake, [me, *peers.values()])
    except ConfigError as error:
        reason = f"a connection from {host}: {f'{error}'[:300]}"
        if reason not in refusals:
            print_line(f"warning: refused {reason}")
        refusals[reason] = None
        _send(connection, error=(ClusterConfigError.exit_status, f"{error}"))
        connection.close()
        return
    peers[connection] = peer
    if peer.num_processes != me.num_processes:
        raise ClusterConfigError(
            f"{peer} was started with {peer.num_processes} processes, {me} with"
            f" {me.num_processes}: give all the same --processes."
        )


def _identify(handshake: dict[str, Any], joined: list[Peer]) -> Peer:
    """The process that sent this. Raises ConfigError for one that is not of the run."""
    kinds = get_type_hints(Peer)
    check_kinds(handshake, kinds, "a process of lmx")
    require(handshake.keys() == kinds.keys(), "it is no process of this lmx")
    peer, expected = Peer(**handshake), joined[0].must_match
    differing = [n for n, x in expected.items() if peer.must_match.get(n) != x]
    require(
        not differing,
        f"process {peer.process_id} differs from process 0 in {', '.join(differing)}:"
        " start all processes of a run with the same code and the same command",
    )
    for other in joined:
        message = f"{peer} and {other} have the same index: set --process in each"
        require(other.process_id != peer.process_id, message)
    is_one = peer.process_id in range(peer.num_processes)
    require(is_one, f"{peer} is none of {peer.num_processes} processes")
    return peer


def _connect_to_leader(
    me: Peer, address: str, timeout: float
) -> dict[socket.socket, Peer]:
    """The connection to the leader, once all processes have joined."""
    target, deadline = _split_address(address), time.monotonic() + timeout
    while True:
        try:
            connection = socket.create_connection(target, _remaining(deadline))
            # The leader may die, be another program, or answer at its own deadline.
            connection.settimeout(_remaining(deadline) + HANDSHAKE_TIMEOUT)
            _enable_keepalive(connection)
            _send(connection, **asdict(me))
            if (reply := _receive(connection)) and "error" in reply:
                connection.settimeout(None)
                break
            connection.close()
            problem = "what listens there sends no answer"
        except OSError as error:
            problem = error.strerror or f"{error}"
        if time.monotonic() > deadline:
            raise PeerLostError(
                f"process {me.process_id} cannot reach process 0 at {address} within"
                f" {timeout:.0f} s ({problem}): start process 0, and check that this"
                " machine can connect to it."
            )
        time.sleep(RETRY_INTERVAL)
    if reply["error"]:
        connection.close()
        status, reason = reply["error"]
        raise {EXIT_RESTART: PeerLostError}.get(status, ClusterConfigError)(reason)
    return {connection: Peer(**reply["leader"])}


def _describe_missing(joined: list[Peer], timeout: float) -> str:
    joined = sorted(joined, key=lambda peer: peer.process_id)
    missing = sorted({*range(joined[0].num_processes)} - {p.process_id for p in joined})
    first = ", ".join(map(str, missing[:20])) + (", ..." if missing[20:] else "")
    return (
        f"{len(missing)} of {joined[0].num_processes} processes did not join within"
        f" {timeout:.0f} s: {first}. Joined: {', '.join(map(str, joined[:20]))}"
    )


def _split_address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ClusterConfigError(f"{address!r} is not HOST:PORT, as in node1:4321.")
    return host.strip("[]"), int(port)


def _listen(address: str, backlog: int) -> socket.socket:
    """Listens at the port of the address, on every interface of this machine."""
    _, port = _split_address(address)
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(
            ("", port), family=family, dualstack_ipv6=dual, backlog=backlog
        )
    except OSError as error:
        raise ClusterConfigError(
            f"process 0 cannot listen at port {port} ({error.strerror}): choose another"
            " port for --coordinator."
        ) from None


def _enable_keepalive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if option := getattr(socket, name, None):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _send(connection: socket.socket, **message: Any) -> None:
    """Sends one JSON object, ignoring a closed connection."""
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket, timeout: float = math.inf) -> dict[str, Any]:
    """The next JSON object; empty if the connection is closed, late or invalid.

    Reads unbuffered, so that `wait` sees what follows. The timeout is of the whole
    object; that of the connection, of each byte.
    """
    deadline, line = time.monotonic() + timeout, b""
    try:
        while (
            not line.endswith(b"\n")
            and len(line) < 2**16
            and time.monotonic() < deadline
            and (byte := connection.recv(1))
        ):
            line += byte
        message = json.loads(line)
    except (OSError, ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}
