"""How often the state of a run is saved, and how much of it is kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmx.config.names import ConfigError, configurable
from lmx.core import process
from lmx.data.progress import say
from lmx.train.checkpoint.checkpoints import Checkpoints
from lmx.train.checkpoint.reader import DamageError
from lmx.train.hooks.periodic import Due, due
from lmx.train.step import Metrics, TrainState


@configurable
@dataclass(frozen=True, kw_only=True)
class Save:
    """How often the state is saved, and how many of the newest saves are kept.

    Attributes:
        failures: so many saves in a row that fail end the run, with status 75.
        damaged: what becomes of a newest state that is damaged. `aside`: it is renamed,
            and the run goes on from the one before; `refuse`: the run does not start.
    """

    every: int = 1000  # steps
    keep: int = 2
    failures: int = 3
    damaged: Literal["aside", "refuse"] = "aside"

    def __post_init__(self):
        if min(self.every, self.keep, self.failures) < 1:
            raise ConfigError("Save.every, keep and failures must be 1 or more.")

    def open(self, folder: Path, origin: Mapping[str, Any]) -> Checkpoints:
        """The states in the folder, of which whoever saves more has that origin."""
        return Checkpoints(folder, self.keep, self.failures, origin)

    def past(self, error: DamageError) -> None:
        """Says that a damaged state is passed over, or refuses to."""
        if self.damaged == "refuse":
            raise error
        if process.first():
            say(f"DAMAGED, set aside; the state before it is used:\n{error}")

    def start(
        self, checkpoints: Checkpoints, steps: int, flush: Callable[[], None]
    ) -> Due:
        """Saves every so many steps, and at the last; `flush` before that.

        So that no state is there whose metrics are not.
        """

        def save(done: int, state: TrainState, metrics: Metrics) -> None:
            del metrics
            flush()
            checkpoints.save(done, state)

        return Due(due(self.every, steps), save)
