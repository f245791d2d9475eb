"""What an experiment has done now and then beside the training."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from lmx.config.registry import ConfigError
from lmx.run.run_dir import RunDir
from lmx.train.loop import StepCallback
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState


@dataclass(frozen=True)
class ScheduledHook:
    """A hook that has something to do after some steps, and which those are.

    What is due after the step that a run is taken up at is done then, if it was not
    before; there are no metrics of that step.
    """

    is_due: Callable[[int], bool]
    run: StepCallback

    def __call__(self, done: int, state: TrainState, metrics: Metrics) -> None:
        """Does it, if it is due."""
        if self.is_due(done):
            self.run(done, state, metrics)


class PreSaveHook(ScheduledHook):
    """It looks at a state before that is saved, and may end the run."""


class Hook(ABC):
    """A hook that an experiment chooses: evaluation, samples, a profile."""

    @abstractmethod
    def start(self, run: RunContext) -> Callable[[RunDir], ScheduledHook]:
        """Opens and checks what is needed; given a directory to write to, the hook."""


def make_schedule(every: int, steps: int) -> Callable[[int], bool]:
    """Whether something is due after that many steps: every so many, and at the end."""
    if every < 1:
        raise ConfigError(f"every {every} steps is never: it must be 1 or more.")
    return lambda done: done % every == 0 or done == steps
