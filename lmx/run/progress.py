"""Progress of a run: a bar on a terminal, an occasional line elsewhere."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from lmx.core.console import LINE_INTERVAL, print_line


class RunProgress:
    """Shows steps, the newest metrics and the time left; nothing if not enabled."""

    def __init__(self, name: str, done: int, steps: int, *, enabled: bool = True):
        self.name, self.steps, self.enabled = name, steps, enabled
        self.first_step = self.done = done
        self.started = self.last_shown = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(
            desc=name,
            total=steps,
            initial=done,
            unit="step",
            dynamic_ncols=True,
            disable=not (self.terminal and enabled),
        )

    def update(self, done: int) -> None:
        self.bar.update(done - self.done)
        self.done = done

    def show_metrics(self, values: Mapping[str, str]) -> None:
        self.bar.set_postfix(values, refresh=False)
        now = time.monotonic()
        recent = now - self.last_shown < LINE_INTERVAL and self.done < self.steps
        if not self.enabled or self.terminal or recent:
            return
        self.last_shown = now
        speed = (now - self.started) / (self.done - self.first_step)
        metrics = ", ".join(f"{name} {value}" for name, value in values.items())
        left = tqdm.format_interval((self.steps - self.done) * speed)
        print_line(
            f"{self.name}: step {self.done}/{self.steps}, {metrics}, {left} left"
        )

    def close(self) -> None:
        self.bar.close()
