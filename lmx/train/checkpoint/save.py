"""How often the state of a run is saved, and how much of it is kept."""

from collections.abc import Callable
from dataclasses import dataclass

from lmx.config.names import ConfigError, configurable
from lmx.train.checkpoint.checkpoints import Checkpoints
from lmx.train.hooks.periodic import Due, due
from lmx.train.step import Metrics, TrainState


@configurable
@dataclass(frozen=True, kw_only=True)
class Save:
    """How often the state is saved, and how many of the newest saves are kept."""

    every: int = 1000  # steps
    keep: int = 2

    def __post_init__(self):
        if self.every < 1 or self.keep < 1:
            raise ConfigError("Save.every and Save.keep must be 1 or more.")

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
