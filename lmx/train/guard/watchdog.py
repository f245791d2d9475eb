"""A thread that ends a process which makes no progress, and says where it hangs."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable
from pathlib import Path

import jax

from lmx.core.rendezvous import EXIT_RESTART

CHECKS_PER_TIMEOUT = 20  # how often it looks within its patience
EXIT_DELAY = 5.0  # seconds for the file, and as many for other processes that hang too


class Watchdog:
    """Exits with 75 once what is being done has not changed for so many seconds.

    `progress` says what that is, and a mark that changes whenever something is begun
    or done. All Python stacks are then in `folder`/hang-I.txt, I being the process, and
    on stderr. It works while the main thread waits in C++, and does not heed the clock
    of the wall; a process that was stopped, or a machine that slept, has not hung.
    """

    def __init__(
        self,
        progress: Callable[[], tuple[str, Hashable]],
        timeout: float,
        folder: Path,
    ):
        self.progress, self.timeout = progress, timeout
        self.file = folder / f"hang-{jax.process_index()}.txt"
        self.closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def close(self) -> None:
        """It looks no more."""
        self.closed.set()

    def _watch(self) -> None:
        pause = self.timeout / CHECKS_PER_TIMEOUT
        mark, idle = self.progress()[1], 0.0
        looked = time.monotonic()
        while not self.closed.wait(pause):
            what, now = self.progress()
            before, looked = looked, time.monotonic()
            # Longer than two pauses only where this process itself did not run.
            idle = idle + min(looked - before, 2 * pause) if now == mark else 0.0
            mark = now
            if idle >= self.timeout:
                self._exit(what)

    def _exit(self, what: str) -> None:
        why = (
            f"error: nothing has moved for {self.timeout:g} s (in state {what!r});"
            f" where each thread is stands in {self.file}"
        )
        print(why, file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        # Beside, since it may be this disk at which all hangs.
        told = threading.Thread(target=self._write_stacks, args=(why,), daemon=True)
        told.start()
        told.join(EXIT_DELAY)
        time.sleep(EXIT_DELAY if jax.process_count() > 1 else 0.0)
        os._exit(EXIT_RESTART)

    def _write_stacks(self, why: str) -> None:
        try:
            with self.file.open("w") as file:
                print(why, file=file, flush=True)
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            print(f"error: {self.file}: {error.strerror}", file=sys.stderr, flush=True)
