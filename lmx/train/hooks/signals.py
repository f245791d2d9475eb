"""Stopping at a signal: the step is done, the state saved, then the run ends."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from lmx.core import distributed
from lmx.core.console import print_line
from lmx.run.timing import TimeAccounting
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.step import Metrics, TrainState

SIGNALS = (signal.SIGINT, signal.SIGTERM)
DEBOUNCE = 0.5  # seconds: what comes sooner was sent to a group and to its members


class StoppedError(Exception):
    """A signal asked to stop; the state is saved."""

    def __init__(self, signum: int, done: int):
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {done}")
        self.signum, self.done = signum, done
        self.exit_status = 128 + signum


class GracefulShutdown:
    """At Ctrl-C or SIGTERM ends the step, saves and stops; at the second, at once.

    One process of many that is asked stops all of them, after the same step. It must
    be called after `MetricLogger`, which waits for the step before. What is not saved `grace`
    seconds after the signal is not saved: the process ends, as it does at a second
    signal, even where it hangs. After the step `until` it stops as at a SIGTERM.
    """

    def __init__(
        self,
        checkpoints: CheckpointManager,
        flush: Callable[[], None],
        account: TimeAccounting,
        grace: float | None = None,
        stop_after: int | None = None,
    ):
        self.checkpoints, self.flush, self.account = checkpoints, flush, account
        self.requested: int | None = None
        self.stop_after = stop_after
        self.stop_signal = distributed.StopSignal()
        self.listener = SignalListener(grace)
        self.before = {s: signal.signal(s, self._on_signal) for s in SIGNALS}

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.requested = self.requested or signum

    def __enter__(self) -> "GracefulShutdown":
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)
        self.listener.close()

    def __call__(self, done: int, state: TrainState, metrics: Metrics) -> None:
        del metrics
        if done == self.stop_after:
            self.requested = self.requested or signal.SIGTERM
        if self.requested is not None:
            self.stop_signal.set(
                f"{self.requested} {done + distributed.max_steps_in_flight()}"
            )
        word = self.stop_signal.get()
        if word is None:
            return
        signum, last = map(int, word.split())
        if done < last:
            return
        with self.account.measure("stop"):
            self.flush()
            self.checkpoints.wait_pending()
            if done not in self.checkpoints.list_steps():
                self.checkpoints.save(done, state)
            self.checkpoints.wait()
        self.account.record(done)
        raise StoppedError(signum, done)


class SignalListener:
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
        first = self._next_signal(None)
        if not first:
            return
        heard = time.monotonic()
        print_line("stopping after this step; once more stops at once without saving")
        while True:
            left = None
            if self.grace is not None:
                left = max(heard + self.grace - time.monotonic(), 0.0)
            signum = self._next_signal(left)
            if signum == 0:
                return
            if signum is None:
                print_line(f"not saved within {self.grace:g} s: stopped at once")
                os._exit(128 + first)
            if time.monotonic() - heard > DEBOUNCE:
                print_line("stopped at once")
                os._exit(128 + signum)

    def _next_signal(self, seconds: float | None) -> int | None:
        """The next of the two signals; 0 at the end, None if none comes in time."""
        late = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if late is None else max(late - time.monotonic(), 0.0)
            if not select.select([self.ear], [], [], left)[0]:
                return None
            word = os.read(self.ear, 1)
            if not word or word[0] in SIGNALS:
                return word[0] if word else 0
