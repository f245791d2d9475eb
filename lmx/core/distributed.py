"""Cluster detection, startup and agreement of the processes of a run."""

import contextlib
import hashlib
import itertools
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
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

PEER_LOSS_DELAY = 2.0  # seconds in which the rendezvous reports the cause of an error
LEADER_TIMEOUT = 3600.0  # seconds for work that one process does alone
# One process compiled 30 s longer than another.
GLOO_TIMEOUT_MESSAGE = "Gloo context initialization failed"
# JAX's detection fails in a pod of Kubernetes that is not part of an indexed job.
KUBERNETES_MARKER = "KUBERNETES_SERVICE_HOST"
INDEX_VARIABLES = ("JOB_COMPLETION_INDEX", "TPU_WORKER_HOSTNAMES")
# Tasks of this SLURM step on each node, as in "1(x4)" or "8(x3),4".
SLURM_TASKS = "SLURM_STEP_TASKS_PER_NODE"
ONE_TASK_PER_NODE = re.compile(r"1(\(x\d+\))?")

_sequence = itertools.count()  # of keys; equal in all processes


def detect_cluster(
    process: int | None = None,
    processes: int | None = None,
    coordinator: str | None = None,
) -> ProcessInfo | None:
    """The given values, completed by SLURM, a TPU pod, Kubernetes or MPI.

    None if this is the only process. It has all devices of its machine, or one if
    SLURM or MPI starts several processes on a machine. Raises ClusterConfigError if a
    value is missing.
    """
    devices = None
    pod = KUBERNETES_MARKER in os.environ
    if None in (coordinator, processes, process) and (
        not pod or any(name in os.environ for name in INDEX_VARIABLES)
    ):
        coordinator, processes, process, devices = (
            ClusterEnv.auto_detect_unset_distributed_params(
                coordinator, processes, process, None, None, int(BARRIER_TIMEOUT)
            )
        )
    if processes == 1 or (coordinator, processes, process) == (None, None, None):
        return None
    if coordinator is None or processes is None or process is None:
        raise ClusterConfigError(
            "--processes, --process and --coordinator go together, and the environment"
            " does not set the missing ones: set all three."
        )
    if not 0 <= process < processes:
        raise ClusterConfigError(
            f"--process {process} of --processes {processes}: processes are counted"
            " from 0."
        )
    if ONE_TASK_PER_NODE.fullmatch(os.environ.get(SLURM_TASKS, "")):
        devices = None  # JAX would take one device, as for several tasks on a node
    return ProcessInfo(process, processes, coordinator, devices)


@contextlib.contextmanager
def distributed_session(
    info: ProcessInfo | None,
    must_match: Mapping[str, str],
    timeout: float,
    *,
    usage_errors: type[Exception],
) -> Iterator[None]:
    """Runs its body as one process of several; `info` None runs it as the only one.

    Raises as `Rendezvous.join` does. An exception in the body exits all processes: with
    status 2 if it is one of `usage_errors`, else 1. If a process dies, all others exit
    with 75.
    """
    if info is None:
        yield
        return
    must_match = {"lmx": source_digest(), "jax": jax.__version__, **must_match}
    rendezvous = Rendezvous.join(info, must_match, timeout)
    try:
        jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM
        jax.distributed.initialize(
            info.coordinator,
            info.num_processes,
            info.process_id,
            info.local_device_ids,
            initialization_timeout=int(BARRIER_TIMEOUT),
            # The rendezvous comes first: JAX would abort the process by a signal.
            heartbeat_timeout_seconds=int(2 * HEARTBEAT_TIMEOUT),
        )
        yield
    except BaseException as error:
        _exit_all(rendezvous, info.process_id, error, usage_errors)
    rendezvous.leave()
    jax.distributed.shutdown()


def _exit_all(
    rendezvous: Rendezvous,
    process: int,
    error: BaseException,
    usage_errors: type[Exception],
) -> None:
    if isinstance(error, usage_errors):
        print(f"error: {error}", file=sys.stderr)
        rendezvous.abort(2, f"process {process}: {error}")
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        rendezvous.abort(130, f"process {process} was interrupted")
    time.sleep(PEER_LOSS_DELAY)
    if not isinstance(error, PeerLostError):
        traceback.print_exception(error)
    reason = f"process {process}: {type(error).__name__}: {error}"
    rendezvous.abort(exit_status(error), reason)


def exit_status(error: BaseException) -> int:
    """Exit status for an exception: 75 if a restart may help."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return EXIT_RESTART if GLOO_TIMEOUT_MESSAGE in f"{error}" else 1
    return getattr(error, "exit_status", 1)


def source_digest() -> str:
    """A digest of the source code of lmx."""
    root, content = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        content.update(f"{file.relative_to(root)}".encode() + file.read_bytes())
    return content.hexdigest()[:12]


def is_leader() -> bool:
    """Whether this is process 0, which does what must be done once."""
    return jax.process_index() == 0


def broadcast_from_leader(compute: Callable[[], T]) -> T:
    """The result of `compute` in process 0, as JSON, in all processes.

    All processes must make the same calls in the same order.
    """
    if jax.process_count() == 1:
        return compute()
    key = f"lmx/{next(_sequence)}"
    if not is_leader():
        return _wait_for_value(key, process=0)
    value = compute()
    _client().key_value_set(key, json.dumps(value))
    return value


def gather_to_leader(key: str, value: T) -> list[T] | None:
    """The value of each process, as JSON, in process 0; None in the others.

    Each process must call this once with the same key, from any thread.
    """
    if not is_leader():
        name = f"lmx/{key}/{jax.process_index()}"
        return _client().key_value_set(name, json.dumps(value))
    values = [value]
    for process in range(1, jax.process_count()):
        values.append(_wait_for_value(f"lmx/{key}/{process}", process))
        _client().key_value_delete(f"lmx/{key}/{process}")
    return values


def _wait_for_value(key: str, process: int) -> Any:
    timeout = int(LEADER_TIMEOUT * 1000)
    try:
        return json.loads(_client().blocking_key_value_get(key, timeout))
    except jax.errors.JaxRuntimeError as error:
        raise PeerLostError(
            f"process {process} sent nothing for {LEADER_TIMEOUT:.0f} s: {error}"
        ) from None


def fetch_global(x: jax.Array) -> np.ndarray:
    """The whole array on the host, in every process; all processes must call this."""
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def max_steps_in_flight() -> int:
    """Steps that a peer may still start before it sees a signal set by this process.

    A process that sets it after step n has not started n + 1, for which a peer waits
    before it starts n + 3.
    """
    return 2 if jax.process_count() > 1 else 0


class StopSignal:
    """A value shared by all processes, which the first call of `set` decides."""

    def __init__(self):
        self.value: str | None = None
        self.key = f"lmx/{next(_sequence)}"

    def set(self, value: str) -> None:
        """Sets the value, unless it is set."""
        if jax.process_count() == 1:
            self.value = self.value or value
            return
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # a peer has set it
            _client().key_value_set(f"{self.key}/value", value)

    def get(self) -> str | None:
        """The value; None if it was not set before the last step of this process."""
        if self.value is None and jax.process_count() > 1:
            values = _client().key_value_dir_get(self.key)
            self.value = next((value for _, value in values), None)
        return self.value


def _client() -> Any:
    """JAX's key-value store, which exists if there are several processes."""
    return global_state.client
