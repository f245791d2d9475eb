"""Stopping at a signal: the step is done, the state saved, then the run ends."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from lmx.core import process
from lmx.data.progress import say
from lmx.train.checkpoint.checkpoints import Checkpoints
from lmx.train.record.account import Account
from lmx.train.step import Metrics, TrainState

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TWICE = 0.5  # seconds: what comes sooner was sent to a group and to its members


class StoppedError(Exception):
    """A signal asked to stop; the state is saved."""

    def __init__(self, signum: int, done: int):
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {done}")
        self.signum, self.done = signum, done


class Stop:
    """At Ctrl-C or SIGTERM ends the step, saves and stops; at the second, at once.

    One process of many that is asked stops all of them, after the same step. It must
    be called after `Log`, which waits for the step before. What is not saved `grace`
    seconds after the signal is not saved: the process ends, as it does at a second
    signal, even where it hangs. After the step `until` it stops as at a SIGTERM.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        flush: Callable[[], None],
        account: Account,
        grace: float | None = None,
        until: int | None = None,
    ):
        self.checkpoints, self.flush, self.account = checkpoints, flush, account
        self.asked: int | None = None
        self.until = until
        self.notice = process.Notice()
        self.watch = _Watch(grace)
        self.before = {s: signal.signal(s, self._ask) for s in SIGNALS}

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.asked = self.asked or signum

    def __enter__(self) -> "Stop":
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)
        self.watch.close()

    def __call__(self, done: int, state: TrainState, metrics: Metrics) -> None:
        del metrics
        if done == self.until:
            self.asked = self.asked or signal.SIGTERM
        if self.asked is not None:
            self.notice.post(f"{self.asked} {done + process.ahead()}")
        word = self.notice.read()
        if word is None:
            return
        signum, last = map(int, word.split())
        if done < last:
            return
        with self.account.within("stop"):
            self.flush()
            self.checkpoints.settle()
            if done not in self.checkpoints.steps():
                self.checkpoints.save(done, state)
            self.checkpoints.wait()
        self.account.note(done)
        raise StoppedError(signum, done)


class _Watch:
    """A thread that hears signals even while the main thread is deep in a program."""

    def __init__(self, grace: float | None):
        self.grace = grace
        self.ear, self.mouth = os.pipe()
        os.set_blocking(self.mouth, False)
        self.before = signal.set_wakeup_fd(self.mouth, warn_on_full_buffer=False)
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Signals are as they were."""
        signal.set_wakeup_fd(self.before)
        os.close(self.mouth)
        self.thread.join()
        os.close(self.ear)

    def _listen(self) -> None:
        first = self._hear(None)
        if not first:
            return
        heard = time.monotonic()
        say("stopping after this step; once more stops at once without saving")
        while True:
            left = None
            if self.grace is not None:
                left = max(heard + self.grace - time.monotonic(), 0.0)
            signum = self._hear(left)
            if signum == 0:
                return
            if signum is None:
                say(f"not saved within {self.grace:g} s: stopped at once")
                os._exit(128 + first)
            if time.monotonic() - heard > TWICE:
                say("stopped at once")
                os._exit(128 + signum)

    def _hear(self, seconds: float | None) -> int | None:
        """The next of the two signals; 0 at the end, None if none comes in time."""
        late = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if late is None else max(late - time.monotonic(), 0.0)
            if not select.select([self.ear], [], [], left)[0]:
                return None
            word = os.read(self.ear, 1)
            if not word or word[0] in SIGNALS:
                return word[0] if word else 0
