"""Stopping at a signal: the step is done, the state saved, then the run ends."""

import signal
from collections.abc import Callable
from types import FrameType

from lmx.core import process
from lmx.data.progress import say
from lmx.train.checkpoint.checkpoints import Checkpoints
from lmx.train.step import Metrics, TrainState


class StoppedError(Exception):
    """A signal asked to stop; the state is saved."""

    def __init__(self, signum: int, done: int):
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {done}")
        self.signum = signum


class Stop:
    """At Ctrl-C or SIGTERM ends the step, saves and stops; at the second, at once.

    One process of many that is asked stops all of them, after the same step. It must
    be called after `Log`, which waits for the step before.
    """

    def __init__(self, checkpoints: Checkpoints, flush: Callable[[], None]):
        self.checkpoints, self.flush = checkpoints, flush
        self.asked: int | None = None
        self.notice = process.Notice()
        self.before = {
            signum: signal.signal(signum, self._ask)
            for signum in (signal.SIGINT, signal.SIGTERM)
        }

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.asked = signum
        self.restore()
        say("stopping after this step; once more stops at once without saving")

    def restore(self) -> None:
        """Signals do again what they did before."""
        for signum, handler in self.before.items():
            signal.signal(signum, handler)

    def __call__(self, done: int, state: TrainState, metrics: Metrics) -> None:
        del metrics
        if self.asked is not None:
            self.notice.post(f"{self.asked} {done + process.ahead()}")
        word = self.notice.read()
        if word is None:
            return
        signum, last = map(int, word.split())
        if done < last:
            return
        self.flush()
        self.checkpoints.settle()
        if done not in self.checkpoints.steps():
            self.checkpoints.save(done, state)
        self.checkpoints.wait()
        raise StoppedError(signum, done)
