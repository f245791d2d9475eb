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

AGAIN = 75  # exit status: a restart may help
PATIENCE = 300.0  # seconds that one process may come to its end before another
LAST = 10.0  # seconds that the first process stays behind, for the others to end
PAUSE = 0.1  # seconds between two tries to reach the first process
HELLO = 5.0  # seconds in which whoever connects must say who it is
ALIVE = 10.0  # seconds between two words of a process that has nothing else to say
# Seconds of silence after which a process is given up: one that is stopped keeps its
# line. C that holds the interpreter's lock silences it too, as few things do for long.
SILENT = 300.0
# The kernel asks after a peer that has been silent for `idle` seconds, then each
# `interval`, and gives it up after `count` unanswered: a machine without power says
# no goodbye.
KEEPALIVE = {"IDLE": 20, "INTVL": 5, "CNT": 4}


class LostError(Exception):
    """Not all processes came, or one is gone: a restart may help."""


class SeatError(ValueError):
    """What processes were told of one another cannot be."""


@dataclass(frozen=True)
class Seat:
    """Which of how many processes this is, and where the first of them listens."""

    process: int
    processes: int
    coordinator: str  # HOST:PORT
    devices: Sequence[int] | None = None  # of this machine; None: all


@dataclass(frozen=True, eq=False)
class Guest:
    """One process as the others know it."""

    process: int
    processes: int
    host: str
    pid: int
    facts: Mapping[str, str]  # what must be the same in all, in digests

    def __str__(self):
        return f"process {self.process} ({self.host}, pid {self.pid})"


class Lobby:
    """Lines between the first process and each other, open until all are done.

    Whoever ends without a goodbye takes the others along: they say who it was and
    exit with its status, or with 75 if it could not even tell that.
    """

    def __init__(self, seat: Seat, lines: dict[Guest, socket.socket]):
        self.seat, self.lines = seat, lines
        self.left = threading.Event()  # all have said goodbye
        self.ending = threading.Lock()
        self.watch = threading.Thread(target=self._watch, daemon=True)
        self.watch.start()

    @classmethod
    def enter(cls, seat: Seat, facts: Mapping[str, str], seconds: float) -> "Lobby":
        """Waits until all are there, which are told the same.

        Raises LostError if one does not come, SeatError if one was told otherwise.
        """
        me = Guest(
            process=seat.process,
            processes=seat.processes,
            host=socket.gethostname(),
            pid=os.getpid(),
            facts=facts,
        )
        meet = _receive if seat.process == 0 else _arrive
        lines = meet(me, seat.coordinator, seconds)
        for line in lines.values():
            _keep_alive(line)
        return cls(seat, lines)

    def leave(self) -> None:
        """Says goodbye, and waits for all to: the first process says it last."""
        if self.seat.process != 0:
            self._tell(bye=True)
        if not self.left.wait(PATIENCE):
            self.end(AGAIN, f"not all processes came to their end in {PATIENCE:.0f} s")
        if self.seat.process == 0:
            self._tell(bye=True)

    def end(self, status: int, why: str) -> NoReturn:
        """Ends this process, and with it the others, who will tell why."""
        with self.ending:
            self._exit(status, why)

    def _exit(self, status: int, why: str) -> NoReturn:
        self._tell(why=why, status=status)
        if self.seat.process == 0:  # jax's service is in it, and is missed at once
            self._empty()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def _tell(self, **word: Any) -> None:
        for line in self.lines.values():
            _say(line, **word)

    def _watch(self) -> None:
        """Until all have said goodbye, or one has not, or says nothing for too long."""
        now = time.monotonic()
        heard, told = dict.fromkeys(self.lines, now), now
        with selectors.DefaultSelector() as ready:
            for guest, line in self.lines.items():
                ready.register(line, selectors.EVENT_READ, guest)
            while heard:
                for key, _ in ready.select(min(ALIVE, SILENT / 10)):
                    guest, word = key.data, _hear(self.lines[key.data])
                    heard[guest] = time.monotonic()
                    if word.get("bye"):
                        ready.unregister(key.fileobj)
                        del heard[guest]
                    elif not word.get("alive"):
                        self._lost(guest, word)
                if time.monotonic() - told >= min(ALIVE, SILENT / 10):
                    self._tell(alive=True)
                    told = time.monotonic()
                for guest, at in heard.items():
                    if told - at > SILENT:
                        why = f"{guest} is stopped: not a word in {SILENT:.0f} s"
                        self._lost(guest, {"why": why})
        self.left.set()

    def _lost(self, guest: Guest, word: dict[str, Any]) -> NoReturn:
        with self.ending:  # one that ends for a reason of its own hears no other
            why = word.get("why", f"{guest} is gone")
            print(f"error: {why}", file=sys.stderr)
            self._exit(word.get("status", AGAIN), why)

    def _empty(self) -> None:
        """Waits until the others have ended."""
        late = time.monotonic() + LAST
        for line in self.lines.values():
            with contextlib.suppress(OSError):
                line.settimeout(max(late - time.monotonic(), 0.01))
                while line.recv(4096):
                    pass


def _receive(me: Guest, address: str, seconds: float) -> dict[Guest, socket.socket]:
    """The lines of all others; each is told that all are there, or why not."""
    lines: dict[Guest, socket.socket] = {}
    fault: tuple[int, str] | None = None
    late = time.monotonic() + seconds
    with _door(address, me.processes) as door:
        while len(lines) < me.processes - 1 and not fault:
            door.settimeout(max(late - time.monotonic(), 0.01))
            try:
                line, _ = door.accept()
            except TimeoutError:
                fault = (AGAIN, _missing([me, *lines], seconds))
                break
            line.settimeout(HELLO)
            try:
                guest = Guest(**_hear(line))
            except TypeError:  # a stranger
                line.close()
                continue
            fault = _unlike([me, *lines], guest)
            lines[guest] = line
    for line in lines.values():
        line.settimeout(None)
        _say(line, me=asdict(me), fault=fault)
        if fault:
            line.close()
    if fault:
        raise _error(*fault)
    return lines


def _arrive(me: Guest, address: str, seconds: float) -> dict[Guest, socket.socket]:
    """The line to the first process, once it says that all are there."""
    late = time.monotonic() + seconds
    while True:
        try:
            left = max(late - time.monotonic(), PAUSE)
            line = socket.create_connection(_parted(address), timeout=left)
        except OSError as failed:
            error = failed.strerror or f"{failed}"
        else:
            if first := _welcomed(me, line):
                return {first: line}
            error = "it hung up"
        if time.monotonic() > late:
            raise LostError(
                f"process {me.process} cannot reach process 0 at {address} in"
                f" {seconds:.0f} s ({error}): was it started, and may this machine"
                " connect to it?"
            )
        time.sleep(PAUSE)


def _welcomed(me: Guest, line: socket.socket) -> Guest | None:
    """The first process, once it says that all are there; None if it is not one."""
    with contextlib.ExitStack() as closing:
        closing.enter_context(line)
        line.settimeout(None)
        _keep_alive(line)
        _say(line, **asdict(me))
        word = _hear(line)
        if not word:
            return None
        if word["fault"]:
            raise _error(*word["fault"])
        closing.pop_all()
        return Guest(**word["me"])


def _missing(there: list[Guest], seconds: float) -> str:
    """Who has not come, and who has."""
    numbers = {guest.process for guest in there}
    absent = [n for n in range(there[0].processes) if n not in numbers]
    shown = ", ".join(map(str, absent[:20])) + (", ..." if absent[20:] else "")
    return (
        f"{len(absent)} of {there[0].processes} processes did not come within"
        f" {seconds:.0f} s: {shown}. There are "
        + ", ".join(map(str, sorted(there, key=lambda guest: guest.process)[:20]))
    )


def _unlike(there: list[Guest], guest: Guest) -> tuple[int, str] | None:
    """What is wrong with a newcomer, if anything is."""
    first = there[0]
    if guest.processes != first.processes:
        said = f"{guest} was told of {guest.processes} processes, {first} of"
        return 2, f"{said} {first.processes}: give all the same --processes."
    for other in there:
        if other.process == guest.process:
            return 2, f"{guest} and {other} have one number: give each its own."
    names = [name for name in first.facts if guest.facts.get(name) != first.facts[name]]
    if names:
        told = "; ".join(
            f"{name} is {guest.facts.get(name)} and not {first.facts[name]}"
            for name in names
        )
        return 2, f"{guest} is not as {first} is: {told}."
    return None


def _error(status: int, why: str) -> Exception:
    return LostError(why) if status == AGAIN else SeatError(why)


def _parted(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise SeatError(f"{address!r} is no HOST:PORT, as in node1:4321.")
    return host.strip("[]"), int(port)


def _door(address: str, guests: int) -> socket.socket:
    """Listens at that port on every interface of this machine."""
    _, port = _parted(address)
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
            backlog=guests,
        )
    except OSError as error:
        raise SeatError(
            f"process 0 cannot listen at port {port} ({error.strerror}): choose another"
            " port for --coordinator."
        ) from None


def _keep_alive(line: socket.socket) -> None:
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if option := getattr(socket, f"TCP_KEEP{name}", None):  # not on every system
            line.setsockopt(socket.IPPROTO_TCP, option, value)


def _say(line: socket.socket, **word: Any) -> None:
    """Sends a word; whoever is gone does not hear it."""
    with contextlib.suppress(OSError):
        line.sendall(json.dumps(word).encode() + b"\n")


def _hear(line: socket.socket) -> dict[str, Any]:
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
