"""Executors that build the shards of a store: local processes, or a Ray cluster."""

import multiprocessing
import os
import signal
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from lmx.config.registry import ConfigError, NonNegative, Positive, configurable
from lmx.data.optional import import_optional
from lmx.data.store.shard_plan import BuildJob, ShardSpec
from lmx.data.store.shard_writer import ShardCounts, write_shard

Specs = Sequence[ShardSpec]
OnProgress = Callable[[ShardCounts], None]


class WorkerError(Exception):
    """A worker process failed or was killed."""

    exit_status = 75


class Executor(ABC):
    """Builds shards, in any order. Their bytes do not depend on the executor."""

    @abstractmethod
    def run(self, job: BuildJob, specs: Specs, on_progress: OnProgress) -> None:
        """Writes the shard of each spec, and reports progress."""


@configurable
@dataclass(frozen=True, kw_only=True)
class ProcessPool(Executor):
    """Processes of this machine, by default one per core."""

    workers: Positive[int | None] = None

    def run(self, job: BuildJob, specs: Specs, on_progress: OnProgress) -> None:
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        workers = min(self.workers or cores, len(specs))
        if workers > 1:
            _run_parallel(job, specs, on_progress, workers)
            return
        for spec in specs:
            write_shard(job, spec, on_progress)


def _run_parallel(
    job: BuildJob, specs: Specs, on_progress: OnProgress, count: int
) -> None:
    """Writes the shards in worker processes, all of which end before this returns."""
    context = multiprocessing.get_context("spawn")
    next_index = context.Value("q", 0)
    workers: dict[Any, Any] = {}
    try:
        for _ in range(count):
            receiver, sender = context.Pipe(duplex=False)
            args = (job, specs, next_index, sender)
            worker = context.Process(target=_run_worker, args=args, daemon=True)
            worker.start()
            sender.close()
            workers[receiver] = worker
        while workers:
            ready: list[Any] = wait(list(workers))
            for receiver in ready:
                try:
                    message = receiver.recv()
                except (EOFError, OSError):
                    worker = workers.pop(receiver)
                    worker.join()
                    if worker.exitcode:
                        raise WorkerError(
                            f"a worker process ended with exit code {worker.exitcode}:"
                            " if memory ran out, lower ProcessPool.workers."
                        ) from None
                    continue
                if isinstance(message, Exception):
                    raise message
                on_progress(message)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.join()


def _run_worker(
    job: BuildJob, specs: Specs, next_index: Any, sender: Connection
) -> None:
    """Builds shards until none is left. Ends if the parent process is dead."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    try:
        while True:
            with next_index.get_lock():
                index = next_index.value
                next_index.value += 1
            if index >= len(specs):
                return
            write_shard(job, specs[index], sender.send)
    except BrokenPipeError:
        return
    except ConfigError as error:
        sender.send(ConfigError(f"{error}"))
    except Exception:
        sender.send(WorkerError(traceback.format_exc()))


@configurable
@dataclass(frozen=True, kw_only=True)
class RayExecutor(Executor):
    """A Ray task per shard, which is retried if a machine fails.

    Every machine of the cluster must see the store and the corpora at the same paths.

    Attributes:
        address: a cluster, as `ray.init` takes it; None: the cluster of this
            machine, or else a new one on this machine alone.
        cpus_per_shard: CPUs reserved for each task.
    """

    address: str | None = None
    cpus_per_shard: NonNegative[float] = 1.0

    def run(self, job: BuildJob, specs: Specs, on_progress: OnProgress) -> None:
        ray = import_optional("ray", "cluster", "to build on a cluster")
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        ray.init(self.address, ignore_reinit_error=True, **quiet)
        write = ray.remote(num_cpus=self.cpus_per_shard)(write_shard)
        shared_job = ray.put(job)
        tasks = [write.remote(shared_job, spec) for spec in specs]
        try:
            while tasks:
                [task], tasks = ray.wait(tasks)
                on_progress(ray.get(task))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ConfigError):
                raise ConfigError(f"{error.cause}") from None
            raise WorkerError(f"{error}") from error
