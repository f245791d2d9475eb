"""Runs an `lmx` command, records what it does, and kills it at a kill point.

`python -m lmx.faulttest.injector TRACE KILL_POINT train ...` runs `lmx train ...`.
It patches the training loop, the checkpoint save and the renaming and removal of
files; their own code has no hooks for it. Each event is one JSON line of TRACE.
KILL_POINT is the JSON of a `KillPoint`, or `null`.
"""

import itertools
import json
import os
import runpy
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lmx.core.batch import AnyBatch
from lmx.faulttest import kill_point as kinds
from lmx.faulttest.kill_point import KillPoint
from lmx.train import loop
from lmx.train.checkpoint.digest import checksum_parts, get_local_parts
from lmx.train.checkpoint.manager import CheckpointManager

COMMAND = "lmx.cli.main"
COMMIT_TIMEOUT = 120.0  # seconds
POLL_INTERVAL = 1e-4  # seconds
CHECKPOINTS = "checkpoints"


class Injector:
    """The trace and the kill point of this process."""

    def __init__(self, trace: Path, kill_point: KillPoint | None):
        self.trace_file = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self.kill_point = kill_point or KillPoint("never")

    def record(self, **event: Any) -> None:
        """Appends one line to the trace at once, so that a kill cannot lose it."""
        line = json.dumps({"at": time.monotonic(), **event})
        os.write(self.trace_file, f"{line}\n".encode())

    def maybe_kill(
        self, kind: str, step: int | None, when: Callable[[], bool] = lambda: True
    ) -> None:
        """Kills this process like `kill -9` at the kill point, once `when` is true."""
        if (kind, step) != (self.kill_point.kind, self.kill_point.step):
            return
        deadline = time.monotonic() + COMMIT_TIMEOUT
        while not when():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not reached in {COMMIT_TIMEOUT:g} s: {kind}")
            time.sleep(POLL_INTERVAL)
        os.kill(os.getpid(), signal.SIGKILL)

    def start_timer(self, kind: str) -> None:
        """Kills this process after a delay, if the kill point is of that kind."""
        if self.kill_point.kind == kind:
            kill = (os.getpid(), signal.SIGKILL)
            timer = threading.Timer(self.kill_point.delay, os.kill, kill)
            timer.daemon, self.kill_point = True, KillPoint("started")
            timer.start()

    def wrap_train(self, train: Callable[..., Any]) -> Callable[..., Any]:
        """The training loop; each step is recorded with its batch and its loss."""

        def traced(step_fn: Callable, state: Any, *args: Any, **kwargs: Any) -> Any:
            numbers, seconds = itertools.count(int(state.step) + 1), 0.0
            self.record(from_step=int(state.step))

            def step(state: Any, batch: AnyBatch) -> Any:
                nonlocal seconds
                number, started = next(numbers), time.perf_counter()
                self.record(step=number, batch=f"{fingerprint(batch):016x}")
                state, metrics = step_fn(state, batch)
                end = time.perf_counter() + self.kill_point.delay * seconds
                self.maybe_kill(kinds.STEP, number, lambda: time.perf_counter() > end)
                loss = float(np.asarray(metrics["loss"]))  # waits for the step
                self.record(done=number, loss=loss.hex())
                seconds = time.perf_counter() - started
                self.start_timer(kinds.TIMER)
                return state, metrics

            return train(step, state, *args, **kwargs)

        return traced

    def before_save(self, manager: CheckpointManager, step: int, *_: Any) -> None:
        """Called before the checkpoint manager's `save`."""
        self.record(saving=step)
        self.maybe_kill(kinds.SAVE_REQUESTED, step)

    def after_save(self, manager: CheckpointManager, step: int, *_: Any) -> None:
        """Called when `save` returns, while a thread writes the checkpoint."""
        self.maybe_kill(kinds.SAVE_COPIED, step)
        self.maybe_kill(kinds.FIRST_ARRAY, step, lambda: has_array(manager.folder))
        self.maybe_kill(
            kinds.BEFORE_HOOKS, step, (manager.folder / f"{step:08d}").exists
        )

    def before_rename(self, source: Any, target: Any) -> None:
        """Called before a file or folder is renamed, as to commit a checkpoint."""
        self.before_removal(source)
        self.maybe_kill(kinds.BEFORE_COMMIT, parse_step(target))
        # Waits: the main thread kills this process.
        self.maybe_kill(kinds.FIRST_ARRAY, parse_step(target), lambda: False)

    def after_rename(self, source: Any, target: Any) -> None:
        """Called after a file or folder is renamed."""
        if (step := parse_step(target)) is not None:
            self.record(saved=step)
            self.maybe_kill(kinds.AFTER_COMMIT, step)

    def before_removal(self, path: Any) -> None:
        """Kills before a checkpoint is pruned, once that of the kill point exists."""
        new = Path(os.fsdecode(path)).with_name(f"{self.kill_point.step:08d}")
        if parse_step(path) is not None and new.exists():
            self.maybe_kill(kinds.BEFORE_PRUNE, self.kill_point.step)

    def install(self) -> None:
        """Patches the functions in this process."""
        loop.train = self.wrap_train(loop.train)
        patch(CheckpointManager, "save", self.before_save, self.after_save)
        patch(os, "rename", self.before_rename, self.after_rename)
        patch(os, "replace", self.before_rename, self.after_rename)
        patch(shutil, "rmtree", self.before_removal)


def patch(
    owner: Any,
    name: str,
    before: Callable[..., None],
    after: Callable[..., None] = lambda *args: None,
) -> None:
    """Calls `before` and `after` around each call, with its positional arguments."""
    function = getattr(owner, name)

    def patched(*args: Any, **kwargs: Any) -> Any:
        before(*args)
        result = function(*args, **kwargs)
        after(*args)
        return result

    setattr(owner, name, patched)


def has_array(folder: Path) -> bool:
    """Whether an uncommitted checkpoint has bytes of an array on disk."""
    files = folder.glob("*tmp*/**/d/*")
    return any(file.is_file() and file.stat().st_size for file in files)


def parse_step(path: Any) -> int | None:
    """The step of the folder of a committed checkpoint; None for any other path."""
    folder = Path(os.fsdecode(path))
    is_checkpoint = folder.parent.name == CHECKPOINTS and folder.name.isdigit()
    return int(folder.name) if is_checkpoint else None


def fingerprint(batch: Any) -> int:
    """64 bits of a batch; those of processes with parts of it add up modulo 2**64."""
    parts = get_local_parts(batch._asdict())
    sums = [checksum_parts(parts[name], x.shape) for name, x in batch._asdict().items()]
    return sum((2 * field + 1) * sum(pair) for field, pair in enumerate(sums)) % 2**64


def main() -> None:
    """Runs the command with the wrappers installed."""
    trace, kill_point, *arguments = sys.argv[1:]
    fields = json.loads(kill_point)
    injector = Injector(Path(trace), KillPoint(**fields) if fields else None)
    injector.install()
    injector.start_timer(kinds.STARTUP)
    sys.argv = [COMMAND, *arguments]
    try:
        runpy.run_module(COMMAND, run_name="__main__", alter_sys=True)
    finally:
        injector.record(finished=True)


if __name__ == "__main__":
    main()
