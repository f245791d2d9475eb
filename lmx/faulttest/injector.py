"""A process that dies when it was told to, and leaves a trace of what it did.

`python -m lmx.faulttest.injector TRACE MOMENT MODULE WORD ...` runs the module as
`python -m MODULE WORD ...` does. Around the training loop, the save of a state and the
renaming of files stand watchers, put there by name: what is watched knows nothing of
it. Each appends a line to TRACE, and at the moment, which is JSON or `nullable`, kills the
process as the kernel would.
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

from lmx.core.batch import Batch
from lmx.faulttest.kill_point import (
    AFTER_COMMIT,
    BEFORE_COMMIT,
    BEFORE_HOOKS,
    BEFORE_PRUNE,
    FIRST_ARRAY,
    SAVE_COPIED,
    SAVE_REQUESTED,
    STEP,
    KillPoint,
)
from lmx.train.checkpoint.digest import compute_checksums

COMMIT_TIMEOUT = 120.0  # seconds for a state to be committed
POLL_INTERVAL = 1e-4  # seconds between two looks at a folder
CHECKPOINTS = "checkpoints"


class Injector:
    """What is watched in this process, and when it ends."""

    def __init__(self, trace: Path, kill_point: KillPoint | None):
        self.trace_file = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self.kill_point = kill_point
        self.step_started = self.step_seconds = (
            0.0  # when the last step began, and what one took
        )
        self.pending_loss: tuple[int, Any] | None = None  # the last step, and its loss
        self.committed = threading.Event()  # the state after the moment's step

    def record(self, **what: Any) -> None:
        """One line, which stays whatever becomes of this process."""
        line = json.dumps({"at": time.monotonic(), **what})
        os.write(self.trace_file, f"{line}\n".encode())

    def matches(self, kind: str, step: int | None) -> bool:
        """Whether this is the moment."""
        moment = self.kill_point
        return moment is not None and (moment.kind, moment.step) == (kind, step)

    def maybe_kill(self, kind: str, step: int | None) -> None:
        """Ends here, if this is the moment."""
        if self.matches(kind, step):
            self.kill()

    def kill(self) -> None:
        """As by `kill -9`."""
        self.record(died=str(self.kill_point))
        os.kill(os.getpid(), signal.SIGKILL)

    def wrap_train(self, loop: Callable[..., Any]) -> Callable[..., Any]:
        """The training loop, each of its steps and batches noted as it begins."""

        def train(step_fn: Callable, state: Any, *rest: Any, **named: Any) -> Any:
            numbers = itertools.count(int(state.step) + 1)
            self.record(from_step=int(state.step))
            self.pending_loss = None

            def step(state: Any, batch: Batch) -> Any:
                number = next(numbers)
                self.record_loss()
                now = time.perf_counter()
                self.step_seconds, self.step_started = (
                    now - (self.step_started or now),
                    now,
                )
                self.record(step=number, batch=f"{fingerprint(batch):016x}")
                state, metrics = step_fn(state, batch)
                self.pending_loss = (number, metrics["loss"])
                if self.kill_point and self.matches(STEP, number):
                    time.sleep(self.kill_point.delay * self.step_seconds)
                    self.kill()
                return state, metrics

            final = loop(step, state, *rest, **named)
            self.record_loss()
            return final

        return train

    def record_loss(self) -> None:
        """The loss of the newest step, to its last bit, once it is known."""
        if self.pending_loss is not None:
            number, loss = self.pending_loss
            self.record(done=number, loss=float(np.asarray(loss)).hex())
            self.pending_loss = None

    def wrap_save(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """The save of a state, its beginning noted."""

        def save(checkpoints: Any, step: int, *rest: Any, **named: Any) -> Any:
            self.record_loss()  # once the state is there, nobody takes this step again
            self.record(saving=step)
            self.maybe_kill(SAVE_REQUESTED, step)
            if self.matches(FIRST_ARRAY, step):
                threading.Thread(
                    target=self._kill_at_first_array,
                    args=(checkpoints.folder,),
                    daemon=True,
                ).start()
            result = inner(checkpoints, step, *rest, **named)
            self.maybe_kill(SAVE_COPIED, step)
            if self.matches(BEFORE_HOOKS, step):
                if not self.committed.wait(COMMIT_TIMEOUT):
                    raise TimeoutError(
                        f"no commit of step {step} in {COMMIT_TIMEOUT:.0f} s"
                    )
                self.kill()
            return result

        return save

    def _kill_at_first_array(self, folder: Path) -> None:
        """Ends once there is a file of arrays in a state that is not committed."""
        while not any(
            file.is_file() and file.stat().st_size
            for unfinished in folder.glob("*tmp*")
            for file in unfinished.glob("**/d/*")
        ):
            time.sleep(POLL_INTERVAL)
        self.kill()

    def wrap_rename(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """The renaming of a file or folder: a state is committed so, or removed."""

        def rename(source: Any, target: Any, *rest: Any, **named: Any) -> Any:
            new = parse_step(target)
            self.before_removal(parse_step(source))
            self.maybe_kill(BEFORE_COMMIT, new)
            if self.matches(FIRST_ARRAY, new):
                time.sleep(
                    COMMIT_TIMEOUT
                )  # its files are there: they are about to be seen
            result = inner(source, target, *rest, **named)
            if new is not None:
                self.record(saved=new)
                if self.kill_point and new == self.kill_point.step:
                    self.committed.set()
                self.maybe_kill(AFTER_COMMIT, new)
            return result

        return rename

    def wrap_rmtree(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """The removal of a folder with all that is in it."""

        def rmtree(path: Any, *rest: Any, **named: Any) -> Any:
            self.before_removal(parse_step(path))
            return inner(path, *rest, **named)

        return rmtree

    def before_removal(self, step: int | None) -> None:
        """A state is about to be removed, if there is a step."""
        if step is not None and self.committed.is_set() and self.kill_point:
            self.maybe_kill(BEFORE_PRUNE, self.kill_point.step)

    def install(self) -> None:
        """Puts the watchers up, in this process and nowhere else."""
        from lmx.train import loop
        from lmx.train.checkpoint.manager import CheckpointManager

        loop.train = self.wrap_train(loop.train)
        CheckpointManager.save = self.wrap_save(CheckpointManager.save)
        os.rename, os.replace = (
            self.wrap_rename(os.rename),
            self.wrap_rename(os.replace),
        )
        shutil.rmtree = self.wrap_rmtree(shutil.rmtree)


def parse_step(path: Any) -> int | None:
    """The step of a state that is or will be committed under that name."""
    named = Path(os.fsdecode(path))
    is_state = named.parent.name == CHECKPOINTS and named.name.isdigit()
    return int(named.name) if is_state else None


def fingerprint(batch: Batch) -> int:
    """What this process holds of a batch, in 64 bits.

    Those of all processes add up, modulo 2**64, to the same number however the batch
    is split over devices and processes.
    """
    return (
        sum(
            (2 * field + 1) * int(part)
            for field, array in enumerate(batch)
            for part in compute_checksums(array)
        )
        % 2**64
    )


def main() -> None:
    """Runs the module that was named, watched."""
    trace, moment, module, *words = sys.argv[1:]
    told = json.loads(moment)
    victim = Injector(Path(trace), KillPoint(**told) if told else None)
    victim.install()
    sys.argv = [module, *words]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        victim.record(over=True)


if __name__ == "__main__":
    main()
