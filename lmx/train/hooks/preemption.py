"""Graceful shutdown: at a signal or preemption, saves the state and stops the run."""

import os
import select
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from lmx.core.console import print_line
from lmx.core.distributed import StopSignal, max_steps_in_flight
from lmx.core.rendezvous import SUPERVISOR_PID
from lmx.run.goodput import TimeAccounting
from lmx.run.run_dir import RunDir
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.policy import require_written
from lmx.train.step import Metrics, TrainState

SIGNALS: dict[int, int] = {  # and what they are taken for
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
}
# Seconds. A signal sent to a process group and to its members arrives more than once.
DEBOUNCE = 0.5


class StoppedError(Exception):
    """A signal stopped the run; the state is saved."""

    def __init__(self, signum: int, done: int):
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {done}")
        self.signum, self.done = signum, done
        self.exit_status = 128 + signum


class GracefulShutdown:
    """Stops the run at Ctrl-C or SIGTERM, after saving; at a second one, at once.

    SIGHUP, as of a terminal that closes, is taken for SIGTERM, unless nohup ignores it.
    A signal to one process stops all, after the same step; `flush` is called before
    they save. `grace` seconds after the signal, or at the second one, the process exits
    unsaved, even if the main thread hangs. After step `stop_after` the run stops too.
    """

    def __init__(
        self,
        checkpoints: CheckpointManager,
        run_dir: RunDir,
        timing: TimeAccounting,
        *,
        flush: Callable[[], None] = lambda: None,
        grace: float | None = None,
        stop_after: int | None = None,
    ):
        self.checkpoints, self.run_dir, self.timing = checkpoints, run_dir, timing
        self.flush, self.grace, self.stop_after = flush, grace, stop_after
        self.requested: int | None = None
        self.stop_signal = StopSignal()
        # A thread receives signals while the main thread runs C++.
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.previous_fd = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        is_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        caught = [s for s in SIGNALS if s != signal.SIGHUP or not is_nohup]
        self.previous = {s: signal.signal(s, self._on_signal) for s in caught}
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Restores the handlers of signals."""
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self.previous_fd)
        os.close(self.writer)
        self.thread.join()
        os.close(self.reader)

    def _is_due(self, step: int) -> bool:
        """Whether the run stops after this step, in all processes."""
        if step == self.stop_after:
            self.requested = self.requested or signal.SIGTERM
        if self.requested is not None:
            self.stop_signal.set(f"{self.requested} {step + max_steps_in_flight()}")
        value = self.stop_signal.get()
        return value is not None and step >= int(value.split()[1])

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """Saves the state and raises StoppedError, if the run stops after this step."""
        if not self._is_due(step):
            return
        self.flush()
        with self.timing.measure("stop"):
            require_written(self.run_dir)
            self.checkpoints.wait_pending()
            if step not in self.checkpoints.list_steps():
                self.checkpoints.save(step, state.trained)
            self.checkpoints.wait()
        self.timing.record(step)
        raise StoppedError(int(f"{self.stop_signal.get()}".split()[0]), step)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.requested = self.requested or SIGNALS[signum]

    def _listen(self) -> None:
        first = self._next_signal(None)
        if not first:
            return
        received = time.monotonic()
        print_line("stopping after this step; a second signal stops without saving")
        deadline = None if self.grace is None else received + self.grace
        while (signum := self._next_signal(deadline)) != 0:
            if signum is None:
                print_line(f"not saved within {self.grace:g} s: stopped at once")
                os._exit(128 + first)
            if time.monotonic() - received > DEBOUNCE:
                print_line("stopped at once")
                os._exit(128 + signum)

    def _next_signal(self, deadline: float | None) -> int | None:
        """The next of `SIGNALS`; 0 once closed, None at the deadline."""
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if not select.select([self.reader], [], [], left)[0]:
                return None
            byte = os.read(self.reader, 1)
            if not byte or byte[0] in SIGNALS:
                return SIGNALS[byte[0]] if byte else 0


POLL_INTERVAL = 5.0  # seconds between two requests, and for one response
PARENT_INTERVAL = 0.5  # seconds between two looks at the parent process
PRODUCT_NAME = Path("/sys/class/dmi/id/product_name")
# Values of Google's machines, TPUs among them. Live migration is not one of them.
# https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys
EVENTS = {"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE", "preempted": "TRUE"}


def find_metadata_host() -> str | None:
    """The metadata server of this machine; None if there is none."""
    if host := os.environ.get("GCE_METADATA_HOST"):
        return host
    google = PRODUCT_NAME.exists() and PRODUCT_NAME.read_text().startswith("Google")
    return "metadata.google.internal" if google else None


class PreemptionWatcher:
    """Polls the metadata server, and sends this process SIGTERM at the first event.

    Does the same once the supervisor that started this process has died.
    """

    def __init__(self):
        self.host, self.closed = find_metadata_host(), threading.Event()
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        if self.host:
            threading.Thread(target=self._poll, daemon=True).start()
        if SUPERVISOR_PID:
            threading.Thread(target=self._watch_parent, daemon=True).start()

    def close(self) -> None:
        """Stops polling."""
        self.closed.set()

    def _poll(self) -> None:
        while not self.closed.is_set():
            for name, value in EVENTS.items():
                if self._fetch(name) == value:
                    self._stop(f"this machine is being preempted ({name}: {value})")
                    return
            self.closed.wait(POLL_INTERVAL)

    def _watch_parent(self) -> None:
        while f"{os.getppid()}" == SUPERVISOR_PID:
            if self.closed.wait(PARENT_INTERVAL):
                return
        self._stop("the supervisor of this run has died")

    def _stop(self, reason: str) -> None:
        if not self.closed.is_set():
            print_line(reason)
            os.kill(os.getpid(), signal.SIGTERM)

    def _fetch(self, name: str) -> str:
        """The value of a metadata key; empty if the server does not respond."""
        request = urllib.request.Request(
            f"http://{self.host}/computeMetadata/v1/instance/{name}",
            headers={"Metadata-Flavor": "Google"},
        )
        try:
            with self.opener.open(request, timeout=POLL_INTERVAL) as response:
                return response.read(256).decode().strip()
        except OSError:
            return ""
