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

from lmx.config.registry import ConfigError, configurable
from lmx.data.store.shard_writer import BuildJob, ShardProgress, ShardSpec, write_shard


class WorkerError(Exception):
    """A process ended without a word."""


OnProgress = Callable[[ShardProgress], None]


class Executor(ABC):
    """Builds shards, in any order. Which engine it is changes no byte of them."""

    @abstractmethod
    def run(
        self, job: BuildJob, specs: Sequence[ShardSpec], on_progress: OnProgress
    ) -> None:
        """Writes the shard of each piece, and says how far they have come."""


@configurable
@dataclass(frozen=True, kw_only=True)
class ProcessPool(Executor):
    """Processes of this machine: as many as it has cores, or as are wanted."""

    workers: int | None = None

    def __post_init__(self):
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"ProcessPool.workers is {self.workers}: at least 1.")

    def run(
        self, job: BuildJob, specs: Sequence[ShardSpec], on_progress: OnProgress
    ) -> None:
        count = min(self.workers or count_cores(), len(specs))
        if count > 1:
            _run_parallel(job, specs, on_progress, count)
        else:
            for piece in specs:
                write_shard(job, piece, on_progress)


def count_cores() -> int:
    """How many cores this process may use."""
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else (os.cpu_count() or 1)
    )


def _run_parallel(
    job: BuildJob, pieces: Sequence[ShardSpec], hear: OnProgress, count: int
) -> None:
    """Writes the shards in so many processes, none of which outlives this call."""
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(pieces))
    peers: dict[Any, Any] = {}
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            peer = context.Process(target=_run_worker, args=(job, theirs), daemon=True)
            peer.start()
            theirs.close()
            peers[ours] = peer
            ours.send(waiting.pop())
        while peers:
            ready: list[Any] = wait(list(peers))
            for ours in ready:
                word = _receive(ours, peers[ours])
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


def _receive(ours: Any, peer: Any) -> ShardProgress:
    """What a process says, if it is no error."""
    try:
        said = ours.recv()
    except (EOFError, OSError):
        peer.join()
        raise WorkerError(
            f"a process that built shards has ended with {peer.exitcode}: perhaps"
            " memory ran out, then give fewer, with ProcessPool.workers."
        ) from None
    if isinstance(said, BaseException):
        raise said
    return said


def _run_worker(job: BuildJob, theirs: Connection) -> None:
    """Builds the pieces that come, until the one who sends them is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who sends them stops all
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            piece = theirs.recv()
            try:
                write_shard(job, piece, theirs.send)
            except ConfigError as error:
                theirs.send(ConfigError(f"{error}"))
            except Exception:
                theirs.send(WorkerError(traceback.format_exc()))


def _exit_with_parent() -> None:
    """A parent that is killed cannot say so: its end is all there is to see."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
