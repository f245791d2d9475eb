"""What an experiment has done now and then beside the training."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from lmx.config.names import ConfigError
from lmx.train.loop import Hook
from lmx.train.record.directory import Directory
from lmx.train.run import Run
from lmx.train.step import Metrics, TrainState


@dataclass(frozen=True)
class Due:
    """A hook that has something to do after some steps, and which those are.

    What is due after the step that a run is taken up at is done then, if it was not
    before; there are no metrics of that step.
    """

    after: Callable[[int], bool]
    do: Hook

    def __call__(self, done: int, state: TrainState, metrics: Metrics) -> None:
        """Does it, if it is due."""
        if self.after(done):
            self.do(done, state, metrics)


class Check(Due):
    """It looks at a state before that is saved, and may end the run."""


class Periodic(ABC):
    """A hook that an experiment chooses: evaluation, samples, a profile."""

    @abstractmethod
    def start(self, run: Run) -> Callable[[Directory], Due]:
        """Opens and checks what is needed; given a directory to write to, the hook."""


def due(every: int, steps: int) -> Callable[[int], bool]:
    """Whether something is due after that many steps: every so many, and at the end."""
    if every < 1:
        raise ConfigError(f"every {every} steps is never: it must be 1 or more.")
    return lambda done: done % every == 0 or done == steps
