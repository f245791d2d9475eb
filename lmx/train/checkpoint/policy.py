"""How often the state of a run is saved, and how much of it is kept."""

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
    """How often the state is saved, and how many of the newest saves are kept.

    Attributes:
        failures: so many saves in a row that fail end the run, with status 75.
        damaged: what becomes of a newest state that is damaged. `rejected`: it is renamed,
            and the run goes on from the one before; `raise_if`: the run does not start.
    """

    every: int = 1000  # steps
    keep: int = 2
    max_failures: int = 3
    damaged: Literal["aside", "refuse"] = "aside"

    def __post_init__(self):
        if min(self.every, self.keep, self.max_failures) < 1:
            raise ConfigError(
                "CheckpointPolicy.every, keep and max_failures must be 1 or more."
            )

    def open(self, folder: Path, origin: Mapping[str, Any]) -> CheckpointManager:
        """The states in the folder, of which whoever saves more has that origin."""
        return CheckpointManager(folder, self.keep, self.max_failures, origin)

    def handle_damage(self, error: DamageError) -> None:
        """Says that a damaged state is passed over, or refuses to."""
        if self.damaged == "refuse":
            raise error
        if distributed.is_leader():
            print_line(f"DAMAGED, set aside; the state before it is used:\n{error}")

    def start(
        self, checkpoints: CheckpointManager, steps: int, flush: Callable[[], None]
    ) -> ScheduledHook:
        """Saves every so many steps, and at the last; `flush` before that.

        So that no state is there whose metrics are not.
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
