"""A hook at which a run waits for a test, or fails as it is told."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lmx.config.names import Execution, configurable
from lmx.train.hooks.periodic import Due, Periodic
from lmx.train.record.directory import Directory
from lmx.train.run import Run


@configurable
@dataclass(frozen=True, kw_only=True)
class Gate(Periodic):
    """After each of these steps a run makes `at-STEP`, and waits for `go-STEP`.

    Both are files of `folder`. Where that says "fail", it fails.
    """

    folder: str
    at: Execution[tuple[int, ...]] = ()

    def start(self, run: Run) -> Callable[[Directory], Due]:
        folder = Path(self.folder)

        def wait(done, state, metrics):
            (folder / f"at-{done}").touch()
            while not (folder / f"go-{done}").exists():
                time.sleep(0.01)
            if "fail" in (folder / f"go-{done}").read_text():
                raise ValueError("told to fail")

        return lambda directory: Due(lambda done: done in self.at, wait)
