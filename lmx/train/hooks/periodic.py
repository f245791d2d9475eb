"""What an experiment has done now and then beside the training."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from lmx.config.names import ConfigError
from lmx.train.loop import Hook
from lmx.train.record.directory import Directory
from lmx.train.run import Run


class Periodic(ABC):
    """A hook that an experiment chooses: evaluation, samples, a profile."""

    @abstractmethod
    def start(self, run: Run) -> Callable[[Directory], Hook]:
        """Opens and checks what is needed; given a directory to write to, the hook."""


def due(every: int, steps: int) -> Callable[[int], bool]:
    """Whether something is due after that many steps: every so many, and at the end."""
    if every < 1:
        raise ConfigError(f"every {every} steps is never: it must be 1 or more.")
    return lambda done: done % every == 0 or done == steps
