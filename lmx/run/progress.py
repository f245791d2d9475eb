"""The live line of a run: a bar on a terminal, now and then a line elsewhere."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from lmx.core.console import LINE_INTERVAL, print_line


class RunProgress:
    """How far a run is, what it last measured, and how long it will still take."""

    def __init__(self, name: str, done: int, steps: int):
        self.name, self.steps = name, steps
        self.first_step, self.done = done, done
        self.started = self.last_shown = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(
            desc=name,
            total=steps,
            initial=done,
            unit="step",
            dynamic_ncols=True,
            disable=not self.terminal,
        )

    def update(self, done: int) -> None:
        """That many steps are done."""
        self.bar.update(done - self.done)
        self.done = done

    def show_metrics(self, values: Mapping[str, str]) -> None:
        """The newest measurements."""
        self.bar.set_postfix(values, refresh=False)
        now = time.monotonic()
        if (
            self.terminal
            or now - self.last_shown < LINE_INTERVAL
            and self.done < self.steps
        ):
            return
        self.last_shown = now
        left = (
            (self.steps - self.done)
            * (now - self.started)
            / (self.done - self.first_step)
        )
        shown = ", ".join(f"{name} {value}" for name, value in values.items())
        clock = tqdm.format_interval(left)
        print_line(f"{self.name}: step {self.done}/{self.steps}, {shown}, {clock} left")

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self.bar.close()


class NullRunProgress(RunProgress):
    """The line of a process whose run another one shows."""

    def __init__(self, name: str, done: int, steps: int):
        del name, done, steps

    def update(self, done: int) -> None:
        """Shows nothing."""

    def show_metrics(self, values: Mapping[str, str]) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """There is nothing to leave."""
