"""Hooks that wait for a test, fail on request, or change the wall clock."""

import time
from dataclasses import dataclass
from pathlib import Path

from lmx.config.registry import Execution, configurable
from lmx.train.hook import Hook, HookConfig
from lmx.train.program import RunContext

DAY = 86400.0  # seconds


@configurable
@dataclass(frozen=True, kw_only=True)
class Gate(HookConfig):
    """After each of these steps a run makes `at-STEP`, and waits for `go-STEP`.

    Both are files of `folder`. Where that says "fail", it fails.
    """

    folder: str
    at: Execution[tuple[int, ...]] = ()

    def build(self, run: RunContext) -> Hook:
        folder = Path(self.folder)

        def wait(done, state, metrics):
            (folder / f"at-{done}").touch()
            while not (folder / f"go-{done}").exists():
                time.sleep(0.01)
            if "fail" in (folder / f"go-{done}").read_text():
                raise ValueError("requested by the test")

        return Hook(call=wait, is_due=lambda step: step in self.at)


@configurable
@dataclass(frozen=True, kw_only=True)
class Jump(HookConfig):
    """Sets the wall clock a day ahead after some steps, a day back after others."""

    ahead: Execution[tuple[int, ...]] = ()
    back: Execution[tuple[int, ...]] = ()

    def build(self, run: RunContext) -> Hook:
        clock = time.time
        steps = {**dict.fromkeys(self.ahead, DAY), **dict.fromkeys(self.back, -DAY)}

        def jump(done, state, metrics):
            time.time = lambda: clock() + steps[done]

        return Hook(call=jump, is_due=lambda step: step in steps)
