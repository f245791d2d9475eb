"""Which process of a run this is, how it finds the others, and how they agree."""

import contextlib
import hashlib
import itertools
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src.clusters import ClusterEnv
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from lmx.core.lobby import (
    AGAIN,
    PATIENCE,
    SILENT,
    Lobby,
    LostError,
    Seat,
    SeatError,
)

T = TypeVar("T")

NEWS = 2.0  # seconds: an error may come of a lost process, and that is told soon
SLOW = 3600.0  # seconds that the others wait for what the first does alone
LATE = "Gloo context initialization failed"  # one process compiled 30 s longer
# Where jax may ask who the others are. In a pod that is not one of many it would fail.
POD, INDEXED = (
    "KUBERNETES_SERVICE_HOST",
    ("JOB_COMPLETION_INDEX", "TPU_WORKER_HOSTNAMES"),
)
# Where SLURM says how many tasks of this step each node has: "1(x4)", "8(x3),4".
TASKS, ALONE = "SLURM_STEP_TASKS_PER_NODE", re.compile(r"1(\(x\d+\))?")

_numbers = itertools.count()  # of what processes agree on, in the same order in all


def seat(
    process: int | None = None,
    processes: int | None = None,
    coordinator: str | None = None,
) -> Seat | None:
    """What was said, and else what SLURM, a TPU pod, Kubernetes or MPI tells.

    None where this process is the only one. It has all devices of its machine, or one
    where SLURM or MPI starts several there. Raises SeatError where too little is told.
    """
    devices: Sequence[int] | None = None
    told = (coordinator, processes, process)
    if None in told and (
        POD not in os.environ or any(n in os.environ for n in INDEXED)
    ):
        coordinator, processes, process, devices = (
            ClusterEnv.auto_detect_unset_distributed_params(
                coordinator, processes, process, None, None, int(PATIENCE)
            )
        )
    if ALONE.fullmatch(os.environ.get(TASKS, "")):
        devices = None  # all there are; jax would take one, as of several tasks
    found = (coordinator, processes, process)
    if found == (None, None, None) or processes == 1:
        return None
    if coordinator is None or processes is None or process is None:
        raise SeatError(
            "--processes, --process and --coordinator go together: nothing here tells"
            " the rest of them."
        )
    if not 0 <= process < processes:
        raise SeatError(
            f"--process {process} of --processes {processes}: they are counted from 0."
        )
    return Seat(process, processes, coordinator, devices)


@contextlib.contextmanager
def joined(
    seat: Seat | None,
    facts: Mapping[str, str],
    seconds: float,
    *,
    refusals: type[Exception],
) -> Iterator[None]:
    """Inside, this is one of many processes, if it has a seat among them.

    `facts` must be the same in all, or SeatError is raised; LostError if one does not
    come within so many seconds. What is raised inside ends all processes: with 2 if it
    is one of `refusals`, with 1 if not. Where a process is gone, all exit with 75.
    """
    if seat is None:
        yield
        return
    facts = {"lmx": source(), "jax": jax.__version__, **facts}
    lobby = Lobby.enter(seat, facts, seconds)
    try:
        jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM
        jax.distributed.initialize(
            seat.coordinator,
            seat.processes,
            seat.process,
            seat.devices,
            initialization_timeout=int(PATIENCE),
            heartbeat_timeout_seconds=int(2 * SILENT),  # jax would end it by SIGABRT
        )
        yield
    except BaseException as error:
        _end(lobby, seat, error, refusals)
    lobby.leave()
    jax.distributed.shutdown()


def _end(
    lobby: Lobby, seat: Seat, error: BaseException, refusals: type[Exception]
) -> None:
    """Ends this process and the others for the error, or for what caused it."""
    if isinstance(error, refusals):
        print(f"error: {error}", file=sys.stderr)
        lobby.end(2, f"process {seat.process}: {error}")
    if isinstance(error, KeyboardInterrupt):
        print("stopped at once", file=sys.stderr)
        lobby.end(130, f"process {seat.process} was stopped at once")
    time.sleep(NEWS)
    if not isinstance(error, LostError):
        traceback.print_exception(error)
    why = f"process {seat.process}: {type(error).__name__}: {error}"
    lobby.end(status(error), why)


def status(error: BaseException) -> int:
    """With which a process ends for an error: 75 where a restart may help."""
    late = isinstance(error, jax.errors.JaxRuntimeError) and LATE in f"{error}"
    return AGAIN if late or isinstance(error, LostError) else 1


def source() -> str:
    """A digest of the source of lmx."""
    root, content = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        content.update(f"{file.relative_to(root)}".encode() + file.read_bytes())
    return content.hexdigest()[:12]


def first() -> bool:
    """Whether this is the process that does what must be done once."""
    return jax.process_index() == 0


def from_first(ask: Callable[[], T]) -> T:
    """What the first process finds, in all of them; the others wait for it.

    It must go through JSON. All processes must ask for the same, in the same order.
    """
    if jax.process_count() == 1:
        return ask()
    key = f"lmx/{next(_numbers)}"
    if first():
        answer = ask()
        _client().key_value_set(key, json.dumps(answer))
        return answer
    try:
        return json.loads(_client().blocking_key_value_get(key, int(SLOW * 1000)))
    except jax.errors.JaxRuntimeError as error:
        raise LostError(f"process 0 says nothing for {SLOW:.0f} s: {error}") from None


def to_first(key: str, said: T) -> list[T] | None:
    """What each process says, in their order, in the first of them; None in the others.

    It must go through JSON. All must say something under the same key, once; any
    thread may, and the first waits for the others.
    """
    if jax.process_count() == 1:
        return [said]
    if not first():
        _client().key_value_set(f"lmx/{key}/{jax.process_index()}", json.dumps(said))
        return None
    told = []
    for index in range(1, jax.process_count()):
        place = f"lmx/{key}/{index}"
        try:
            told.append(_client().blocking_key_value_get(place, int(SLOW * 1000)))
        except jax.errors.JaxRuntimeError as error:
            raise LostError(
                f"process {index} says nothing for {SLOW:.0f} s: {error}"
            ) from None
        _client().key_value_delete(place)
    return [said, *map(json.loads, told)]


def whole(x: jax.Array) -> np.ndarray:
    """The numbers of an array, wherever they are; all processes must ask for them."""
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def ahead() -> int:
    """Steps that another process may still begin before it hears of a notice.

    Whoever posts after step n has not begun n + 1. The others can have begun that one,
    and learn by waiting for it, before they begin n + 3, that it was posted.
    """
    return 2 if jax.process_count() > 1 else 0


class Notice:
    """A word to all processes: the first that any of them posts stands."""

    def __init__(self):
        self.word: str | None = None
        self.key = f"lmx/{next(_numbers)}"

    def post(self, word: str) -> None:
        """Puts it up, unless there is one already."""
        if jax.process_count() == 1:
            self.word = self.word or word
            return
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was quicker
            _client().key_value_set(f"{self.key}/word", word)

    def read(self) -> str | None:
        """The word that stands, if any was posted before what this process awaited."""
        if self.word is None and jax.process_count() > 1:
            self.word = next(
                (w for _, w in _client().key_value_dir_get(self.key)), None
            )
        return self.word


def _client() -> Any:
    """Of jax's coordination service, which is there in each of many processes."""
    return global_state.client
