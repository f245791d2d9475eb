"""Back to a state before a loss spike, and on without the data that led to it."""

from collections.abc import Mapping
from dataclasses import dataclass

from lmx.config.names import ConfigError, configurable
from lmx.core import process
from lmx.data.rows.schedule import Course
from lmx.train.checkpoint.checkpoints import Checkpoints
from lmx.train.checkpoint.save import Save
from lmx.train.guard.gaps import REWIND, data_step, gaps_of
from lmx.train.guard.guard import SPIKE, Guard, Init, Watch, wrong
from lmx.train.guard.numbers import fault
from lmx.train.guard.spikes import Spikes
from lmx.train.optim.outer import Take
from lmx.train.record.directory import Directory
from lmx.train.record.ledger import Ledger, entries
from lmx.train.run import Run


class RewoundError(Exception):
    """The states after a step are gone; the run goes on from there, on other data."""


@configurable
@dataclass(frozen=True, kw_only=True)
class Rewind(Guard):
    """Goes back before a loss spike, and leaves out the data seen since, and some more.

    Each batch after that is the one that would have come so many steps later. What is
    left out stands in the ledger. A spike that comes again before the run got past the
    last one did not come of the data: the run ends. Chowdhery et al. 2022,
    arXiv:2204.02311, section 5.1.

    Attributes:
        back: steps between the state that is gone back to and the spike, at least.
        beyond: data steps that are left out after the spike.
    """

    spikes: Spikes = Spikes()
    back: int = 100
    beyond: int = 100

    def __post_init__(self):
        if self.back < 1 or self.beyond < 0:
            raise ConfigError("Rewind.back must be 1 or more, Rewind.beyond 0 or more.")

    def check(self, course: Course, save: Save) -> None:
        if len(course.stages) > 1:
            raise ConfigError(
                "@Rewind() gives a step the data of a later one, and batch or length"
                " change with the step: leave one of the two out."
            )
        if (save.keep - 1) * save.every < self.back:
            raise ConfigError(
                f"Rewind.back is {self.back} steps, and Save keeps {save.keep} states,"
                f" {save.every} steps apart: (Save.keep - 1) * Save.every must be as"
                " many."
            )

    def init(self, init: Init) -> Init:
        return self.spikes.begin(init)

    def step(self, take: Take) -> Take:
        return lambda *what: self.spikes.hear(take, *what)

    def start(self, run: Run, directory: Directory, checkpoints: Checkpoints) -> Watch:
        def look(done: int, values: Mapping[str, float]) -> None:
            if not values[SPIKE] and not wrong(values):
                return
            checkpoints.wait()
            to = self._early(checkpoints.steps(), checkpoints.keep, done)
            if to is None or done <= process.from_first(lambda: _furthest(directory)):
                raise fault(run, directory, checkpoints, done, values)
            self._back(directory, checkpoints, to, done)

        return Watch(look)

    def _early(self, steps: list[int], keep: int, done: int) -> int | None:
        """The newest step to go back to; None if its state is there no more."""
        none = [0] if len(steps) < keep else []  # no state was taken away yet
        return max([*none, *(n for n in steps if n <= done - self.back)], default=None)

    def _back(
        self, directory: Directory, checkpoints: Checkpoints, to: int, done: int
    ) -> None:
        """Leaves no newer state. A run killed in the middle comes here once more."""
        gaps = gaps_of(directory.path)
        begin = data_step(gaps, to)
        end = data_step(gaps, done - 1) + 1 + self.beyond
        for step in checkpoints.steps()[::-1]:
            if step > to:
                checkpoints.remove(step)
        Ledger(directory).note(to, REWIND, "done", found=done, data=[begin, end])
        raise RewoundError(
            f"step {done} is a spike: back to step {to}, and on without the data of"
            f" steps {begin} to {end - 1}"
        )


def _furthest(directory: Directory) -> int:
    """The furthest step that was a spike so far."""
    rows = entries(directory.path)
    return max((row["found"] for row in rows if row["what"] == REWIND), default=0)
