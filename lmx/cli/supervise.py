"""Supervisor, which restarts a run when its process dies and a restart can help."""

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from lmx.core.console import print_line
from lmx.core.rendezvous import SUPERVISOR
from lmx.run.goodput import record_death

FINAL = {0, 1, 2, 130, 143}  # finished, a deterministic error, or a requested stop
FIRST, LONGEST = 1.0, 60.0  # seconds before the first restart, and at most
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """Runs a command and restarts it up to `restarts` times.

    The pause before a restart doubles from 1 to 60 s, and is reset once the run has
    saved a newer checkpoint. It gives up when a process dies twice in the same way with
    nothing saved between. Signals are forwarded, SIGHUP as SIGTERM, and end it.
    The command has its own process group, so that a terminal's Ctrl-C reaches it once,
    and knows its supervisor, so that it stops if that is killed. It inherits the file
    descriptors `pass_fds`.
    """

    def __init__(
        self,
        command: Sequence[str],
        run: Path,
        restarts: int,
        pass_fds: Sequence[int] = (),
    ):
        self.command, self.run, self.restarts = command, run, restarts
        self.pass_fds = pass_fds
        self.child: subprocess.Popen | None = None
        self.received_signal: int | None = None
        self.signal_event = threading.Event()

    def __call__(self) -> int:
        """The exit status of the last process; 128 + n for one killed by signal n."""
        is_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        caught = [s for s in SIGNALS if s != signal.SIGHUP or not is_nohup]
        before = {signum: signal.signal(signum, self._forward) for signum in caught}
        try:
            return self._supervise()
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _forward(self, signum: int, frame: object) -> None:
        signum = signal.SIGTERM if signum == signal.SIGHUP else signum
        self.received_signal = signum
        self.signal_event.set()
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signum)

    def _supervise(self) -> int:
        cause, pause = None, FIRST
        for left in range(self.restarts, -1, -1):
            status = self._run_once()
            previous, cause = cause, (status, newest_step(self.run))
            code = 128 - status if status < 0 else status
            if self.received_signal or code in FINAL:
                return code
            reason = f"the run exited with {status}"
            if status < 0:
                reason = f"the run was killed by {signal.Signals(-status).name}"
            if previous == cause:
                print_line(f"error: {reason}, as before, and nothing was saved between")
                return code
            if not left:
                print_line(f"error: {reason}, and no restart is left")
                return code
            pause = FIRST if previous and cause[1] > previous[1] else pause
            print_line(f"{reason}: restarting in {pause:.0f} s, {left} left")
            if self.signal_event.wait(pause):
                return 128 + (self.received_signal or signal.SIGTERM)
            pause = min(2 * pause, LONGEST)
        raise AssertionError

    def _run_once(self) -> int:
        """Runs the command. Returns its status, negative if a signal killed it."""
        environment = {**os.environ, SUPERVISOR: f"{os.getpid()}"}
        self.child = subprocess.Popen(
            self.command, process_group=0, env=environment, pass_fds=self.pass_fds
        )
        if self.received_signal:  # while it was being started
            self.child.send_signal(self.received_signal)
        status = self.child.wait()
        if status not in FINAL:
            record_death(self.run, self.child.pid, status)
        return status


def newest_step(run: Path) -> int:
    """The step of the latest checkpoint in the folder of a run; -1 if there is none."""
    names = [path.name for path in (run / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=-1)
