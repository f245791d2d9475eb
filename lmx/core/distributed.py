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

from lmx.core.rendezvous import (
    BARRIER_TIMEOUT,
    EXIT_RESTART,
    HEARTBEAT_TIMEOUT,
    ClusterConfigError,
    PeerLostError,
    ProcessInfo,
    Rendezvous,
)

T = TypeVar("T")

PEER_LOSS_DELAY = (
    2.0  # seconds: an error may come of a lost process, and that is told soon
)
LEADER_TIMEOUT = 3600.0  # seconds that the others wait for what the first does alone
GLOO_TIMEOUT_MESSAGE = (
    "Gloo context initialization failed"  # one process compiled 30 s longer
)
# Where jax may ask who the others are. In a pod that is not one of many it would fail.
KUBERNETES_MARKER, INDEX_VARIABLES = (
    "KUBERNETES_SERVICE_HOST",
    ("JOB_COMPLETION_INDEX", "TPU_WORKER_HOSTNAMES"),
)
# Where SLURM says how many tasks of this step each node has: "1(x4)", "8(x3),4".
SLURM_TASKS, ONE_TASK_PER_NODE = (
    "SLURM_STEP_TASKS_PER_NODE",
    re.compile(r"1(\(x\d+\))?"),
)

_sequence = itertools.count()  # of what processes agree on, in the same order in all


def detect_cluster(
    process: int | None = None,
    processes: int | None = None,
    coordinator: str | None = None,
) -> ProcessInfo | None:
    """What was said, and else what SLURM, a TPU pod, Kubernetes or MPI tells.

    None where this process is the only one. It has all devices of its machine, or one
    where SLURM or MPI starts several there. Raises SeatError where too little is told.
    """
    devices: Sequence[int] | None = None
    told = (coordinator, processes, process)
    if None in told and (
        KUBERNETES_MARKER not in os.environ
        or any(n in os.environ for n in INDEX_VARIABLES)
    ):
        coordinator, processes, process, devices = (
            ClusterEnv.auto_detect_unset_distributed_params(
                coordinator, processes, process, None, None, int(BARRIER_TIMEOUT)
            )
        )
    if ONE_TASK_PER_NODE.fullmatch(os.environ.get(SLURM_TASKS, "")):
        devices = None  # all there are; jax would take one, as of several tasks
    found = (coordinator, processes, process)
    if found == (None, None, None) or processes == 1:
        return None
    if coordinator is None or processes is None or process is None:
        raise ClusterConfigError(
            "--processes, --process and --coordinator go together: nothing here tells"
            " the rest of them."
        )
    if not 0 <= process < processes:
        raise ClusterConfigError(
            f"--process {process} of --processes {processes}: they are counted from 0."
        )
    return ProcessInfo(process, processes, coordinator, devices)


@contextlib.contextmanager
def distributed_session(
    info: ProcessInfo | None,
    must_match: Mapping[str, str],
    timeout: float,
    *,
    usage_errors: type[Exception],
) -> Iterator[None]:
    """Inside, this is one of many processes, if it has a seat among them.

    `facts` must be the same in all, or SeatError is raised; LostError if one does not
    come within so many seconds. What is raised inside ends all processes: with 2 if it
    is one of `usage_errors`, with 1 if not. Where a process is gone, all exit with 75.
    """
    if info is None:
        yield
        return
    must_match = {"lmx": source_digest(), "jax": jax.__version__, **must_match}
    lobby = Rendezvous.join(info, must_match, timeout)
    try:
        jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM
        jax.distributed.initialize(
            info.coordinator,
            info.num_processes,
            info.process_id,
            info.local_device_ids,
            initialization_timeout=int(BARRIER_TIMEOUT),
            heartbeat_timeout_seconds=int(
                2 * HEARTBEAT_TIMEOUT
            ),  # jax would end it by SIGABRT
        )
        yield
    except BaseException as error:
        _exit_all(lobby, info, error, usage_errors)
    lobby.leave()
    jax.distributed.shutdown()


def _exit_all(
    lobby: Rendezvous,
    seat: ProcessInfo,
    error: BaseException,
    refusals: type[Exception],
) -> None:
    """Ends this process and the others for the error, or for what caused it."""
    if isinstance(error, refusals):
        print(f"error: {error}", file=sys.stderr)
        lobby.abort(2, f"process {seat.process_id}: {error}")
    if isinstance(error, KeyboardInterrupt):
        print("stopped at once", file=sys.stderr)
        lobby.abort(130, f"process {seat.process_id} was stopped at once")
    time.sleep(PEER_LOSS_DELAY)
    if not isinstance(error, PeerLostError):
        traceback.print_exception(error)
    why = f"process {seat.process_id}: {type(error).__name__}: {error}"
    lobby.abort(exit_status(error), why)


def exit_status(error: BaseException) -> int:
    """With which a process ends for an error: 75 where a restart may help."""
    late = (
        isinstance(error, jax.errors.JaxRuntimeError)
        and GLOO_TIMEOUT_MESSAGE in f"{error}"
    )
    return EXIT_RESTART if late or isinstance(error, PeerLostError) else 1


def source_digest() -> str:
    """A digest of the source of lmx."""
    root, content = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        content.update(f"{file.relative_to(root)}".encode() + file.read_bytes())
    return content.hexdigest()[:12]


def is_leader() -> bool:
    """Whether this is the process that does what must be done once."""
    return jax.process_index() == 0


def broadcast_from_leader(compute: Callable[[], T]) -> T:
    """What the first process finds, in all of them; the others wait for it.

    It must go through JSON. All processes must ask for the same, in the same order.
    """
    if jax.process_count() == 1:
        return compute()
    key = f"lmx/{next(_sequence)}"
    if is_leader():
        answer = compute()
        _client().key_value_set(key, json.dumps(answer))
        return answer
    try:
        return json.loads(
            _client().blocking_key_value_get(key, int(LEADER_TIMEOUT * 1000))
        )
    except jax.errors.JaxRuntimeError as error:
        raise PeerLostError(
            f"process 0 says nothing for {LEADER_TIMEOUT:.0f} s: {error}"
        ) from None


def gather_to_leader(key: str, value: T) -> list[T] | None:
    """What each process says, in their order, in the first of them; None in the others.

    It must go through JSON. All must say something under the same key, once; any
    thread may, and the first waits for the others.
    """
    if jax.process_count() == 1:
        return [value]
    if not is_leader():
        _client().key_value_set(f"lmx/{key}/{jax.process_index()}", json.dumps(value))
        return None
    told = []
    for index in range(1, jax.process_count()):
        place = f"lmx/{key}/{index}"
        try:
            told.append(
                _client().blocking_key_value_get(place, int(LEADER_TIMEOUT * 1000))
            )
        except jax.errors.JaxRuntimeError as error:
            raise PeerLostError(
                f"process {index} says nothing for {LEADER_TIMEOUT:.0f} s: {error}"
            ) from None
        _client().key_value_delete(place)
    return [value, *map(json.loads, told)]


def fetch_global(x: jax.Array) -> np.ndarray:
    """The numbers of an array, wherever they are; all processes must ask for them."""
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def max_steps_in_flight() -> int:
    """Steps that another process may still begin before it hears of a notice.

    Whoever posts after step n has not begun n + 1. The others can have begun that one,
    and learn by waiting for it, before they begin n + 3, that it was posted.
    """
    return 2 if jax.process_count() > 1 else 0


class StopSignal:
    """A word to all processes: the first that any of them posts stands."""

    def __init__(self):
        self.value: str | None = None
        self.key = f"lmx/{next(_sequence)}"

    def set(self, value: str) -> None:
        """Puts it up, unless there is one already."""
        if jax.process_count() == 1:
            self.value = self.value or value
            return
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was quicker
            _client().key_value_set(f"{self.key}/word", value)

    def get(self) -> str | None:
        """The word that stands, if any was posted before what this process awaited."""
        if self.value is None and jax.process_count() > 1:
            self.value = next(
                (w for _, w in _client().key_value_dir_get(self.key)), None
            )
        return self.value


def _client() -> Any:
    """Of jax's coordination service, which is there in each of many processes."""
    return global_state.client
