"""Who builds the shards of a store: this process, several of them, or a cluster."""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from lmx.config.names import ConfigError, configurable
from lmx.data.store.shard import Heard, Job, Piece, write


class LostError(Exception):
    """A process ended without a word."""


Hear = Callable[[Heard], None]


class Engine(ABC):
    """Builds shards, in any order. Which engine it is changes no byte of them."""

    @abstractmethod
    def run(self, job: Job, pieces: Sequence[Piece], hear: Hear) -> None:
        """Writes the shard of each piece, and says how far they have come."""


@configurable
@dataclass(frozen=True, kw_only=True)
class Processes(Engine):
    """Processes of this machine: as many as it has cores, or as are wanted."""

    count: int | None = None

    def __post_init__(self):
        if self.count is not None and self.count < 1:
            raise ConfigError(f"Processes.count is {self.count}: at least 1.")

    def run(self, job: Job, pieces: Sequence[Piece], hear: Hear) -> None:
        count = min(self.count or cores(), len(pieces))
        if count > 1:
            _side_by_side(job, pieces, hear, count)
        else:
            for piece in pieces:
                write(job, piece, hear)


def cores() -> int:
    """How many cores this process may use."""
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else (os.cpu_count() or 1)
    )


def _side_by_side(job: Job, pieces: Sequence[Piece], hear: Hear, count: int) -> None:
    """Writes the shards in so many processes, none of which outlives this call."""
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(pieces))
    peers: dict[Any, Any] = {}
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            peer = context.Process(target=_work, args=(job, theirs), daemon=True)
            peer.start()
            theirs.close()
            peers[ours] = peer
            ours.send(waiting.pop())
        while peers:
            ready: list[Any] = wait(list(peers))
            for ours in ready:
                word = _answer(ours, peers[ours])
                hear(word)
                if word.done and waiting:
                    ours.send(waiting.pop())
                elif word.done:
                    ours.close()
                    peers.pop(ours).join()
    finally:
        for peer in peers.values():
            peer.kill()
        for peer in peers.values():
            peer.join()


def _answer(ours: Any, peer: Any) -> Heard:
    """What a process says, if it is no error."""
    try:
        said = ours.recv()
    except (EOFError, OSError):
        peer.join()
        raise LostError(
            f"a process that built shards has ended with {peer.exitcode}: perhaps"
            " memory ran out, then give fewer, with Processes.count."
        ) from None
    if isinstance(said, BaseException):
        raise said
    return said


def _work(job: Job, theirs: Connection) -> None:
    """Builds the pieces that come, until the one who sends them is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who sends them stops all
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            piece = theirs.recv()
            try:
                write(job, piece, theirs.send)
            except ConfigError as error:
                theirs.send(ConfigError(f"{error}"))
            except Exception:
                theirs.send(LostError(traceback.format_exc()))


def _die_with_parent() -> None:
    """A parent that is killed cannot say so: its end is all there is to see."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
