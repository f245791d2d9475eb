"""How often a run saves a checkpoint, and how many it keeps."""

from dataclasses import dataclass
from typing import Literal

from lmx.config.registry import Positive, configurable
from lmx.core import distributed
from lmx.core.console import print_line
from lmx.run.run_dir import RunDir
from lmx.train.checkpoint.manager import CheckpointManager, SaveError
from lmx.train.checkpoint.reader import DamageError
from lmx.train.hook import Hook, every_steps
from lmx.train.step import Metrics, TrainState


@configurable
@dataclass(frozen=True, kw_only=True)
class CheckpointPolicy:
    """How often a run saves a checkpoint, and how many it keeps.

    Attributes:
        at: further steps to save at, whose checkpoints are always kept.
        keep: number of newest checkpoints to keep beside those.
        max_failures: saves that fail in a row before the run ends with status 75.
        damaged: what to do if the newest checkpoint is damaged. `quarantine`: rename
            it, and resume from the one before; `refuse`: do not start.
    """

    every: Positive[int] = 1000  # steps
    at: Positive[tuple[int, ...]] = ()
    keep: Positive[int] = 2
    max_failures: Positive[int] = 3
    damaged: Literal["quarantine", "refuse"] = "quarantine"

    def handle_damage(self, error: DamageError) -> None:
        """Reports a damaged checkpoint, or refuses to resume."""
        if self.damaged == "refuse":
            raise error
        if distributed.is_leader():
            print_line(f"DAMAGED, quarantined; the one before it is used:\n{error}")

    def build(
        self, checkpoints: CheckpointManager, run_dir: RunDir, steps: int
    ) -> Hook:
        """The hook that saves; fails unless the metrics of the step are written."""

        def save(step: int, state: TrainState, metrics: Metrics) -> None:
            del metrics
            if error := distributed.broadcast_from_leader(run_dir.flush):
                checkpoints.record_failure(error)
            else:
                checkpoints.save(step, state.trained)

        is_due = every_steps(self.every, steps)
        return Hook(call=save, is_due=lambda step: step in self.at or is_due(step))


def require_written(run_dir: RunDir) -> None:
    """Raises SaveError unless all metrics are on disk."""
    if error := distributed.broadcast_from_leader(run_dir.flush):
        raise SaveError(error)
