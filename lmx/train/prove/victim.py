"""A process that dies when it was told to, and leaves a trace of what it did.

`python -m lmx.train.prove.victim TRACE MOMENT MODULE WORD ...` runs the module as
`python -m MODULE WORD ...` does. Around the training loop, the save of a state and the
renaming of files stand watchers, put there by name: what is watched knows nothing of
it. Each appends a line to TRACE, and at the moment, which is JSON or `null`, kills the
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
from lmx.train.checkpoint.digest import sums
from lmx.train.prove.moment import (
    AFTER,
    ARRAY,
    ASKED,
    BEFORE,
    COPIED,
    DUE,
    OLD,
    STEP,
    Moment,
)

PATIENCE = 120.0  # seconds for a state to be committed
LOOK = 1e-4  # seconds between two looks at a folder
FOLDER = "checkpoints"


class Victim:
    """What is watched in this process, and when it ends."""

    def __init__(self, trace: Path, moment: Moment | None):
        self.lines = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self.moment = moment
        self.begun = self.lap = 0.0  # when the last step began, and what one took
        self.newest: tuple[int, Any] | None = None  # the last step, and its loss
        self.committed = threading.Event()  # the state after the moment's step

    def note(self, **what: Any) -> None:
        """One line, which stays whatever becomes of this process."""
        line = json.dumps({"at": time.monotonic(), **what})
        os.write(self.lines, f"{line}\n".encode())

    def now(self, kind: str, step: int | None) -> bool:
        """Whether this is the moment."""
        moment = self.moment
        return moment is not None and (moment.kind, moment.step) == (kind, step)

    def meet(self, kind: str, step: int | None) -> None:
        """Ends here, if this is the moment."""
        if self.now(kind, step):
            self.die()

    def die(self) -> None:
        """As by `kill -9`."""
        self.note(died=str(self.moment))
        os.kill(os.getpid(), signal.SIGKILL)

    def train(self, loop: Callable[..., Any]) -> Callable[..., Any]:
        """The training loop, each of its steps and batches noted as it begins."""

        def train(step_fn: Callable, state: Any, *rest: Any, **named: Any) -> Any:
            numbers = itertools.count(int(state.step) + 1)
            self.note(from_step=int(state.step))
            self.newest = None

            def step(state: Any, batch: Batch) -> Any:
                number = next(numbers)
                self.tell()
                now = time.perf_counter()
                self.lap, self.begun = now - (self.begun or now), now
                self.note(step=number, batch=f"{fingerprint(batch):016x}")
                state, metrics = step_fn(state, batch)
                self.newest = (number, metrics["loss"])
                if self.moment and self.now(STEP, number):
                    time.sleep(self.moment.part * self.lap)
                    self.die()
                return state, metrics

            final = loop(step, state, *rest, **named)
            self.tell()
            return final

        return train

    def tell(self) -> None:
        """The loss of the newest step, to its last bit, once it is known."""
        if self.newest is not None:
            number, loss = self.newest
            self.note(done=number, loss=float(np.asarray(loss)).hex())
            self.newest = None

    def save(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """The save of a state, its beginning noted."""

        def save(checkpoints: Any, step: int, *rest: Any, **named: Any) -> Any:
            self.tell()  # once the state is there, nobody takes this step again
            self.note(saving=step)
            self.meet(ASKED, step)
            if self.now(ARRAY, step):
                threading.Thread(
                    target=self._look, args=(checkpoints.folder,), daemon=True
                ).start()
            result = inner(checkpoints, step, *rest, **named)
            self.meet(COPIED, step)
            if self.now(DUE, step):
                if not self.committed.wait(PATIENCE):
                    raise TimeoutError(f"no commit of step {step} in {PATIENCE:.0f} s")
                self.die()
            return result

        return save

    def _look(self, folder: Path) -> None:
        """Ends once there is a file of arrays in a state that is not committed."""
        while not any(
            file.is_file() and file.stat().st_size
            for unfinished in folder.glob("*tmp*")
            for file in unfinished.glob("**/d/*")
        ):
            time.sleep(LOOK)
        self.die()

    def rename(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """The renaming of a file or folder: a state is committed so, or removed."""

        def rename(source: Any, target: Any, *rest: Any, **named: Any) -> Any:
            new = step_of(target)
            self.leave(step_of(source))
            self.meet(BEFORE, new)
            if self.now(ARRAY, new):
                time.sleep(PATIENCE)  # its files are there: they are about to be seen
            result = inner(source, target, *rest, **named)
            if new is not None:
                self.note(saved=new)
                if self.moment and new == self.moment.step:
                    self.committed.set()
                self.meet(AFTER, new)
            return result

        return rename

    def remove(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """The removal of a folder with all that is in it."""

        def rmtree(path: Any, *rest: Any, **named: Any) -> Any:
            self.leave(step_of(path))
            return inner(path, *rest, **named)

        return rmtree

    def leave(self, step: int | None) -> None:
        """A state is about to be removed, if there is a step."""
        if step is not None and self.committed.is_set() and self.moment:
            self.meet(OLD, self.moment.step)

    def watch(self) -> None:
        """Puts the watchers up, in this process and nowhere else."""
        from lmx.train import loop
        from lmx.train.checkpoint.checkpoints import Checkpoints

        loop.train = self.train(loop.train)
        Checkpoints.save = self.save(Checkpoints.save)
        os.rename, os.replace = self.rename(os.rename), self.rename(os.replace)
        shutil.rmtree = self.remove(shutil.rmtree)


def step_of(path: Any) -> int | None:
    """The step of a state that is or will be committed under that name."""
    named = Path(os.fsdecode(path))
    is_state = named.parent.name == FOLDER and named.name.isdigit()
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
            for part in sums(array)
        )
        % 2**64
    )


def main() -> None:
    """Runs the module that was named, watched."""
    trace, moment, module, *words = sys.argv[1:]
    told = json.loads(moment)
    victim = Victim(Path(trace), Moment(**told) if told else None)
    victim.watch()
    sys.argv = [module, *words]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        victim.note(over=True)


if __name__ == "__main__":
    main()
