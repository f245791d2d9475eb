"""How often a run saves a checkpoint, and how many it keeps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmx.config.registry import ConfigError, configurable
from lmx.core import distributed
from lmx.core.console import print_line
from lmx.train.checkpoint.manager import CheckpointManager, SaveError
from lmx.train.checkpoint.reader import DamageError
from lmx.train.hook import ScheduledHook, make_schedule
from lmx.train.step import Metrics, TrainState


@configurable
@dataclass(frozen=True, kw_only=True)
class CheckpointPolicy:
    """How often a run saves a checkpoint, and how many it keeps.

    Attributes:
        keep: number of newest checkpoints to keep.
        max_failures: saves that fail in a row before the run ends with status 75.
        damaged: what to do if the newest checkpoint is damaged. `quarantine`: rename
            it, and resume from the one before; `refuse`: do not start.
    """

    every: int = 1000  # steps
    keep: int = 2
    max_failures: int = 3
    damaged: Literal["quarantine", "refuse"] = "quarantine"

    def __post_init__(self):
        if min(self.every, self.keep, self.max_failures) < 1:
            raise ConfigError(
                "CheckpointPolicy.every, keep and max_failures must be 1 or more."
            )

    def open(self, folder: Path, origin: Mapping[str, Any]) -> CheckpointManager:
        """The checkpoints in the folder; `origin` describes what saves more of them."""
        return CheckpointManager(folder, self.keep, self.max_failures, origin)

    def handle_damage(self, error: DamageError) -> None:
        """Reports a damaged checkpoint, or refuses to resume."""
        if self.damaged == "refuse":
            raise error
        if distributed.is_leader():
            print_line(f"DAMAGED, quarantined; the one before it is used:\n{error}")

    def start(
        self, checkpoints: CheckpointManager, steps: int, flush: Callable[[], None]
    ) -> ScheduledHook:
        """Saves every `every` steps and after the last one.

        Calls `flush` first, so that the metrics of a saved step are on disk.
        """

        def save(done: int, state: TrainState, metrics: Metrics) -> None:
            del metrics
            try:
                flush()
            except SaveError as error:
                checkpoints.record_failure(f"{error}")
            else:
                checkpoints.save(done, state)

        return ScheduledHook(make_schedule(self.every, steps), save)
