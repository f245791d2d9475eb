"""Where the processes of a run meet before it starts, and learn of one that is gone."""

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

EXIT_RESTART = 75  # exit status: a restart may help
BARRIER_TIMEOUT = 300.0  # seconds that one process may come to its end before another
LEADER_LINGER = (
    10.0  # seconds that the first process stays behind, for the others to end
)
RETRY_INTERVAL = 0.1  # seconds between two tries to reach the first process
HANDSHAKE_TIMEOUT = 5.0  # seconds in which whoever connects must say who it is
HEARTBEAT_INTERVAL = (
    10.0  # seconds between two words of a process that has nothing else to say
)
# Seconds of silence after which a process is given up: one that is stopped keeps its
# line. C that holds the interpreter's lock silences it too, as few things do for long.
HEARTBEAT_TIMEOUT = 300.0
# The kernel asks after a peer that has been silent for `ignored_fields` seconds, then each
# `interval`, and gives it up after `count` unanswered: a machine without power says
# no goodbye.
KEEPALIVE = {"IDLE": 20, "INTVL": 5, "CNT": 4}


class PeerLostError(Exception):
    """Not all processes came, or one is gone: a restart may help."""


class ClusterConfigError(ValueError):
    """What processes were told of one another cannot be."""


@dataclass(frozen=True)
class ProcessInfo:
    """Which of how many processes this is, and where the first of them listens."""

    process_id: int
    num_processes: int
    coordinator: str  # HOST:PORT
    local_device_ids: Sequence[int] | None = None  # of this machine; None: all


@dataclass(frozen=True, eq=False)
class Peer:
    """One process as the others know it."""

    process_id: int
    num_processes: int
    host: str
    pid: int
    must_match: Mapping[str, str]  # what must be the same in all, in digests

    def __str__(self):
        return f"process {self.process_id} ({self.host}, pid {self.pid})"


class Rendezvous:
    """Lines between the first process and each other, open until all are done.

    Whoever ends without a goodbye takes the others along: they say who it was and
    exit with its status, or with 75 if it could not even tell that.
    """

    def __init__(self, info: ProcessInfo, connections: dict[Peer, socket.socket]):
        self.info, self.connections = info, connections
        self.all_left = threading.Event()  # all have said goodbye
        self.exit_lock = threading.Lock()
        self.monitor = threading.Thread(target=self._monitor, daemon=True)
        self.monitor.start()

    @classmethod
    def join(
        cls, info: ProcessInfo, must_match: Mapping[str, str], timeout: float
    ) -> "Rendezvous":
        """Waits until all are there, which are told the same.

        Raises LostError if one does not come, SeatError if one was told otherwise.
        """
        me = Peer(
            process_id=info.process_id,
            num_processes=info.num_processes,
            host=socket.gethostname(),
            pid=os.getpid(),
            must_match=must_match,
        )
        meet = _accept_peers if info.process_id == 0 else _connect_to_leader
        lines = meet(me, info.coordinator, timeout)
        for line in lines.values():
            _enable_keepalive(line)
        return cls(info, lines)

    def leave(self) -> None:
        """Says goodbye, and waits for all to: the first process says it last."""
        if self.info.process_id != 0:
            self._broadcast(bye=True)
        if not self.all_left.wait(BARRIER_TIMEOUT):
            self.abort(
                EXIT_RESTART,
                f"not all processes came to their end in {BARRIER_TIMEOUT:.0f} s",
            )
        if self.info.process_id == 0:
            self._broadcast(bye=True)

    def abort(self, status: int, why: str) -> NoReturn:
        """Ends this process, and with it the others, who will tell why."""
        with self.exit_lock:
            self._exit(status, why)

    def _exit(self, status: int, why: str) -> NoReturn:
        self._broadcast(reason=why, status=status)
        if self.info.process_id == 0:  # jax's service is in it, and is missed at once
            self._drain()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def _broadcast(self, **word: Any) -> None:
        for line in self.connections.values():
            _send(line, **word)

    def _monitor(self) -> None:
        """Until all have said goodbye, or one has not, or says nothing for too long."""
        now = time.monotonic()
        heard, told = dict.fromkeys(self.connections, now), now
        with selectors.DefaultSelector() as ready:
            for guest, line in self.connections.items():
                ready.register(line, selectors.EVENT_READ, guest)
            while heard:
                for key, _ in ready.select(
                    min(HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT / 10)
                ):
                    guest, word = key.data, _receive_message(self.connections[key.data])
                    heard[guest] = time.monotonic()
                    if word.get("bye"):
                        ready.unregister(key.fileobj)
                        del heard[guest]
                    elif not word.get("alive"):
                        self._on_peer_lost(guest, word)
                if time.monotonic() - told >= min(
                    HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT / 10
                ):
                    self._broadcast(alive=True)
                    told = time.monotonic()
                for guest, at in heard.items():
                    if told - at > HEARTBEAT_TIMEOUT:
                        why = f"{guest} is stopped: not a word in {HEARTBEAT_TIMEOUT:.0f} s"
                        self._on_peer_lost(guest, {"why": why})
        self.all_left.set()

    def _on_peer_lost(self, guest: Peer, word: dict[str, Any]) -> NoReturn:
        with self.exit_lock:  # one that ends for a reason of its own hears no other
            why = word.get("why", f"{guest} is gone")
            print(f"error: {why}", file=sys.stderr)
            self._exit(word.get("status", EXIT_RESTART), why)

    def _drain(self) -> None:
        """Waits until the others have ended."""
        late = time.monotonic() + LEADER_LINGER
        for line in self.connections.values():
            with contextlib.suppress(OSError):
                line.settimeout(max(late - time.monotonic(), 0.01))
                while line.recv(4096):
                    pass


def _accept_peers(me: Peer, address: str, seconds: float) -> dict[Peer, socket.socket]:
    """The lines of all others; each is told that all are there, or why not."""
    lines: dict[Peer, socket.socket] = {}
    fault: tuple[int, str] | None = None
    late = time.monotonic() + seconds
    with _listen(address, me.num_processes) as door:
        while len(lines) < me.num_processes - 1 and not fault:
            door.settimeout(max(late - time.monotonic(), 0.01))
            try:
                line, _ = door.accept()
            except TimeoutError:
                fault = (EXIT_RESTART, _describe_missing([me, *lines], seconds))
                break
            line.settimeout(HANDSHAKE_TIMEOUT)
            try:
                guest = Peer(**_receive_message(line))
            except TypeError:  # a stranger
                line.close()
                continue
            fault = _find_mismatch([me, *lines], guest)
            lines[guest] = line
    for line in lines.values():
        line.settimeout(None)
        _send(line, me=asdict(me), fault=fault)
        if fault:
            line.close()
    if fault:
        raise _to_error(*fault)
    return lines


def _connect_to_leader(
    me: Peer, address: str, seconds: float
) -> dict[Peer, socket.socket]:
    """The line to the first process, once it says that all are there."""
    late = time.monotonic() + seconds
    while True:
        try:
            left = max(late - time.monotonic(), RETRY_INTERVAL)
            line = socket.create_connection(_split_address(address), timeout=left)
        except OSError as failed:
            error = failed.strerror or f"{failed}"
        else:
            if first := _handshake(me, line):
                return {first: line}
            error = "it hung up"
        if time.monotonic() > late:
            raise PeerLostError(
                f"process {me.process_id} cannot reach process 0 at {address} in"
                f" {seconds:.0f} s ({error}): was it started, and may this machine"
                " connect to it?"
            )
        time.sleep(RETRY_INTERVAL)


def _handshake(me: Peer, line: socket.socket) -> Peer | None:
    """The first process, once it says that all are there; None if it is not one."""
    with contextlib.ExitStack() as closing:
        closing.enter_context(line)
        line.settimeout(None)
        _enable_keepalive(line)
        _send(line, **asdict(me))
        word = _receive_message(line)
        if not word:
            return None
        if word["fault"]:
            raise _to_error(*word["fault"])
        closing.pop_all()
        return Peer(**word["me"])


def _describe_missing(there: list[Peer], seconds: float) -> str:
    """Who has not come, and who has."""
    numbers = {guest.process_id for guest in there}
    absent = [n for n in range(there[0].num_processes) if n not in numbers]
    shown = ", ".join(map(str, absent[:20])) + (", ..." if absent[20:] else "")
    return (
        f"{len(absent)} of {there[0].num_processes} processes did not come within"
        f" {seconds:.0f} s: {shown}. There are "
        + ", ".join(map(str, sorted(there, key=lambda guest: guest.process_id)[:20]))
    )


def _find_mismatch(there: list[Peer], guest: Peer) -> tuple[int, str] | None:
    """What is wrong with a newcomer, if anything is."""
    first = there[0]
    if guest.num_processes != first.num_processes:
        said = f"{guest} was told of {guest.num_processes} processes, {first} of"
        return 2, f"{said} {first.num_processes}: give all the same --processes."
    for other in there:
        if other.process_id == guest.process_id:
            return 2, f"{guest} and {other} have one number: give each its own."
    names = [
        name
        for name in first.must_match
        if guest.must_match.get(name) != first.must_match[name]
    ]
    if names:
        told = "; ".join(
            f"{name} is {guest.must_match.get(name)} and not {first.must_match[name]}"
            for name in names
        )
        return 2, f"{guest} is not as {first} is: {told}."
    return None


def _to_error(status: int, why: str) -> Exception:
    return PeerLostError(why) if status == EXIT_RESTART else ClusterConfigError(why)


def _split_address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ClusterConfigError(f"{address!r} is no HOST:PORT, as in node1:4321.")
    return host.strip("[]"), int(port)


def _listen(address: str, guests: int) -> socket.socket:
    """Listens at that port on every interface of this machine."""
    _, port = _split_address(address)
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
            backlog=guests,
        )
    except OSError as error:
        raise ClusterConfigError(
            f"process 0 cannot listen at port {port} ({error.strerror}): choose another"
            " port for --coordinator."
        ) from None


def _enable_keepalive(line: socket.socket) -> None:
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if option := getattr(socket, f"TCP_KEEP{name}", None):  # not on every system
            line.setsockopt(socket.IPPROTO_TCP, option, value)


def _send(line: socket.socket, **word: Any) -> None:
    """Sends a word; whoever is gone does not hear it."""
    with contextlib.suppress(OSError):
        line.sendall(json.dumps(word).encode() + b"\n")


def _receive_message(line: socket.socket) -> dict[str, Any]:
    """The next word; none from whoever is gone, or no guest."""
    heard = b""
    try:
        while not heard.endswith(b"\n") and len(heard) < 2**16:
            byte = line.recv(1)  # so that the word after it is left for `select`
            if not byte:
                return {}
            heard += byte
        word = json.loads(heard)
    except (OSError, ValueError):
        return {}
    return word if isinstance(word, dict) else {}
