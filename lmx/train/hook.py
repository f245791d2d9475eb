"""Hooks: actions of a training run after some of its steps."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from lmx.config.registry import ConfigError
from lmx.run.run_dir import Values
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState


class Order(IntEnum):
    """The order of hooks after one step."""

    OBSERVE = 0  # reads metrics; not recorded in the ledger
    CHECK = 1  # may end the run before the state is saved
    SAVE = 2
    ACT = 3
    STOP = 4  # ends the run; not recorded in the ledger


@dataclass(frozen=True, kw_only=True)
class Hook:
    """An action after some steps of a run.

    Attributes:
        call: takes the number of steps done, the state and the metrics of the last
            step; returns metrics to log, or None. If a run resumes at a step whose
            hooks were not done, they are called first, with empty metrics.
        is_due: whether it is called after that many steps.
        flush: completes deferred work: before other hooks save, act or stop.
    """

    call: Callable[[int, TrainState, Metrics], Values | None]
    is_due: Callable[[int], bool] = lambda step: True
    order: Order = Order.ACT
    flush: Callable[[], None] = lambda: None


class HookConfig(ABC):
    """The configuration of a hook, for `Experiment.hooks`."""

    @abstractmethod
    def build(self, run: RunContext) -> Hook:
        """Opens and checks what the hook needs. Writes nothing."""


def every_steps(every: int, steps: int) -> Callable[[int], bool]:
    """A hook's `is_due`: after each `every` steps, and after the last of `steps`."""
    if every < 1:
        raise ConfigError(f"a hook is due every {every} steps: it must be 1 or more.")
    return lambda step: step % every == 0 or step == steps
