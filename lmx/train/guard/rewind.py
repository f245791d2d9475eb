"""Back to a state before a loss spike, and on without the data that led to it."""

from collections.abc import Mapping
from dataclasses import dataclass

from lmx.config.registry import ConfigError, configurable
from lmx.core import distributed
from lmx.data.sampling.schedule import BatchSchedule
from lmx.run.ledger import Ledger, read_ledger
from lmx.run.run_dir import RunDir
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.policy import CheckpointPolicy
from lmx.train.diloco import TrainStepFn
from lmx.train.guard.guard import SPIKE, Guard, Init, MetricWatcher, find_nonfinite
from lmx.train.guard.nonfinite import make_fault
from lmx.train.guard.skipped_data import REWIND, load_skipped, to_data_step
from lmx.train.guard.spikes import SpikeDetector
from lmx.train.program import RunContext


class RewindError(Exception):
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

    detector: SpikeDetector = SpikeDetector()
    steps_back: int = 100
    skip_beyond: int = 100

    def __post_init__(self):
        if self.steps_back < 1 or self.skip_beyond < 0:
            raise ConfigError(
                "Rewind.steps_back must be 1 or more, Rewind.skip_beyond 0 or more."
            )

    def check(self, course: BatchSchedule, save: CheckpointPolicy) -> None:
        if len(course.stages) > 1:
            raise ConfigError(
                "@Rewind() gives a step the data of a later one, and batch or length"
                " change with the step: leave one of the two out."
            )
        if (save.keep - 1) * save.every < self.steps_back:
            raise ConfigError(
                f"Rewind.steps_back is {self.steps_back} steps, and Save keeps {save.keep} states,"
                f" {save.every} steps apart: (CheckpointPolicy.keep - 1) * CheckpointPolicy.every must be as"
                " many."
            )

    def wrap_init(self, init: Init) -> Init:
        return self.detector.wrap_init(init)

    def wrap_step(self, step_fn: TrainStepFn) -> TrainStepFn:
        return lambda *what: self.detector.run_step(step_fn, *what)

    def start(
        self, run: RunContext, directory: RunDir, checkpoints: CheckpointManager
    ) -> MetricWatcher:
        def look(done: int, values: Mapping[str, float]) -> None:
            if not values[SPIKE] and not find_nonfinite(values):
                return
            checkpoints.wait()
            to = self._choose_checkpoint(
                checkpoints.list_steps(), checkpoints.keep, done
            )
            if to is None or done <= distributed.broadcast_from_leader(
                lambda: _furthest_spike(directory)
            ):
                raise make_fault(run, directory, checkpoints, done, values)
            self._rewind(directory, checkpoints, to, done)

        return MetricWatcher(look)

    def _choose_checkpoint(self, steps: list[int], keep: int, done: int) -> int | None:
        """The newest step to go back to; None if its state is there no more."""
        none = [0] if len(steps) < keep else []  # no state was taken away yet
        return max(
            [*none, *(n for n in steps if n <= done - self.steps_back)], default=None
        )

    def _rewind(
        self, directory: RunDir, checkpoints: CheckpointManager, to: int, done: int
    ) -> None:
        """Leaves no newer state. A run killed in the middle comes here once more."""
        gaps = load_skipped(directory.path)
        begin = to_data_step(gaps, to)
        end = to_data_step(gaps, done - 1) + 1 + self.skip_beyond
        for step in checkpoints.list_steps()[::-1]:
            if step > to:
                checkpoints.delete(step)
        Ledger(directory).record(to, REWIND, "done", found=done, data=[begin, end])
        raise RewindError(
            f"step {done} is a spike: back to step {to}, and on without the data of"
            f" steps {begin} to {end - 1}"
        )


def _furthest_spike(directory: RunDir) -> int:
    """The furthest step that was a spike so far."""
    rows = read_ledger(directory.path)
    return max((row["found"] for row in rows if row["hook"] == REWIND), default=0)
