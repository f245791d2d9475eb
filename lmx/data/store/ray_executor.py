"""Shards of a store built by Ray Data, on a cluster."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmx.config.registry import ConfigError, configurable
from lmx.data.store.executor import Executor, OnProgress, WorkerError
from lmx.data.store.shard_writer import BuildJob, ShardProgress, ShardSpec, write_shard


@configurable
@dataclass(frozen=True, kw_only=True)
class RayExecutor(Executor):
    """Ray Data: a task for each shard, tried again where a machine is lost.

    Every machine of the cluster sees the store and the corpora by the same paths.

    Attributes:
        address: of a cluster, as `ray.init` takes it; without one, of the cluster that
            this machine belongs to, or else of one on this machine alone.
        cores: of each task.
    """

    address: str | None = None
    cpus_per_shard: float = 1.0

    def run(
        self, job: BuildJob, specs: Sequence[ShardSpec], on_progress: OnProgress
    ) -> None:
        if not specs:
            return
        try:
            import ray
            import ray.data
            from ray.exceptions import RayTaskError
        except ImportError:
            raise ConfigError(
                "Ray Data is needed to build on a cluster: pip install 'lmx[cluster]'"
            ) from None
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        ray.init(self.address, ignore_reinit_error=True, **quiet)
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        known = ray.put((job, tuple(specs)))
        items: list[Any] = [{"piece": number} for number in range(len(specs))]
        rows = ray.data.from_items(items, override_num_blocks=len(specs))
        task = functools.partial(_write_remote, known)
        work = rows.map(task, num_cpus=self.cpus_per_shard)
        try:
            for row in work.iter_rows():
                if refused := row.pop("refused"):
                    raise ConfigError(refused)
                on_progress(ShardProgress(**row))
        except RayTaskError as error:
            raise WorkerError(f"{error}") from error


def _write_remote(known: Any, row: dict[str, Any]) -> dict[str, Any]:
    """Writes the shard of a piece. Returns what it came to, or why it was refused."""
    import ray

    job, pieces = ray.get(known)
    piece = pieces[row["piece"]]
    heard, refused = [ShardProgress(piece.number, 0, 0, 0, done=False)], ""
    try:
        write_shard(job, piece, heard.append)
    except ConfigError as error:
        refused = f"{error}"
    return {**heard[-1]._asdict(), "refused": refused}
