"""A thread that exits a hanging process and writes where it hangs."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable
from pathlib import Path

import jax

from lmx.core.rendezvous import EXIT_RESTART

CHECKS_PER_TIMEOUT = 20
EXIT_DELAY = 5.0  # seconds to write the file, and for peers that hang to do the same


class Watchdog:
    """Exits with 75 once the progress of a process has not changed for `timeout`.

    `progress` returns the current phase, and a value that changes whenever a phase
    starts or ends. All Python stacks are written to `folder`/hang-I.txt, I being the
    index of the process, and to stderr, also while the main thread waits in C++. Time
    in which the process was stopped, or the machine asleep, does not count.
    """

    def __init__(
        self, progress: Callable[[], tuple[str, Hashable]], timeout: float, folder: Path
    ):
        self.progress, self.timeout = progress, timeout
        self.file = folder / f"hang-{jax.process_index()}.txt"
        self.closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def close(self) -> None:
        """Stops watching."""
        self.closed.set()

    def _watch(self) -> None:
        interval = self.timeout / CHECKS_PER_TIMEOUT
        mark, idle, checked = self.progress()[1], 0.0, time.monotonic()
        while not self.closed.wait(interval):
            phase, new_mark = self.progress()
            previous, checked = checked, time.monotonic()
            # More than two intervals pass only if this process did not run.
            elapsed = min(checked - previous, 2 * interval)
            idle, mark = idle + elapsed if new_mark == mark else 0.0, new_mark
            if idle >= self.timeout:
                self._exit(phase)

    def _exit(self, phase: str) -> None:
        reason = (
            f"error: no progress for {self.timeout:g} s (in phase {phase!r}); the stack"
            f" of each thread is in {self.file}"
        )
        print(reason, file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        # In a thread, as this disk may be what hangs.
        writer = threading.Thread(target=self._write_stacks, args=[reason], daemon=True)
        writer.start()
        writer.join(EXIT_DELAY)
        time.sleep(EXIT_DELAY if jax.process_count() > 1 else 0.0)
        os._exit(EXIT_RESTART)

    def _write_stacks(self, reason: str) -> None:
        try:
            with self.file.open("w") as file:
                print(reason, file=file, flush=True)
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            print(f"error: {self.file}: {error.strerror}", file=sys.stderr, flush=True)
