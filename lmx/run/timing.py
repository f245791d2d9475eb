"""Where the seconds of a run went: each second of each attempt in exactly one state."""

import contextlib
import functools
import math
import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmx.run.jsonl import JsonlWriter, read_jsonl
from lmx.run.run_dir import TIMING, RunDir

# Seconds since the machine was started, of all its processes, sleep among them. Nobody
# can set this clock, as one can that of the wall.
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
FIXED_COSTS = {
    "start",
    "restore",
    "compile",
}  # what an attempt costs, whatever comes of it


def now() -> float:
    """Seconds by the clock of the machine."""
    return time.clock_gettime(CLOCK)


def read_process_start() -> float:
    """When this process began, by the same clock; now, where that is not to be had."""
    try:
        told = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return now()
    return int(told[19]) / os.sysconf("SC_CLK_TCK")


@functools.cache
def read_boot_id() -> str:
    """The name of the time since the machine was started."""
    return (
        BOOT_ID_FILE.read_text()[:8] if BOOT_ID_FILE.exists() else socket.gethostname()
    )


def timestamp() -> dict[str, Any]:
    """Now, by the clock of the machine and by that of the wall."""
    return {
        "boot": read_boot_id(),
        "clock": round(now(), 6),
        "wall": round(time.time(), 3),
    }


class TimeAccounting:
    """A clock with one current state; states nest, and none counts for two.

    `start`, `restore` (or making the state of step 0), `compile` (the first step of
    each shape), `data` (waiting for a batch), `step`, `log_metrics`, `CheckpointPolicy` and the hooks by
    name, `stop_tokens`. Kept in `account.jsonl` at each `record`, so that a kill loses what came
    after the last.
    """

    def __init__(self, since: float | None = None):
        self.state, self.since = "start", now() if since is None else since
        self.started = self.since
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.recorded = self.seconds.copy()
        self.run_dir: RunDir | None = None
        self.attempt = self.step = 0

    @contextlib.contextmanager
    def measure(self, state: str) -> Iterator[None]:
        """Inside, seconds are of that state."""
        before = self.switch(state)
        try:
            yield
        finally:
            self.switch(before)

    def switch(self, state: str) -> str:
        """From now on seconds are of that state. Returns the one before."""
        at = now()
        self.seconds[self.state] += at - self.since
        before, self.state, self.since = self.state, state, at
        return before

    def get_state(self) -> tuple[str, float]:
        """The state, and since when: it changes whenever anything begins or ends."""
        return self.state, self.since

    def sum_seconds(self, *states: str) -> float:
        """Seconds of these states up to now, in this attempt."""
        self.switch(self.state)
        return sum(self.seconds[state] for state in states)

    def start_attempt(self, run_dir: RunDir, step: int) -> None:
        """Writes from now on; this attempt goes on from that step."""
        self.run_dir = run_dir
        self.attempt = 1 + sum("began" in row for row in read_timing(run_dir.path))
        who = {"host": socket.gethostname(), "pid": os.getpid()}
        self._append(began=round(self.started, 6), step=step, **who, **timestamp())
        self.record(step)

    def record(self, step: int) -> None:
        """Writes the seconds since the note before, `step` being done."""
        self.switch(self.state)
        self.step = step
        spent = {s: n - self.recorded[s] for s, n in self.seconds.items()}
        self.recorded = self.seconds.copy()
        told = {state: round(n, 6) for state, n in spent.items() if n}
        self._append(
            step=step, seconds=told, **timestamp() | {"clock": round(self.since, 6)}
        )

    def finish(self) -> None:
        """The last note of this attempt."""
        self.record(self.step)

    def _append(self, **row: Any) -> None:
        if self.run_dir is not None:
            self.run_dir.append(TIMING, {"attempt": self.attempt, **row})


def read_timing(path: Path) -> list[dict[str, Any]]:
    """The lines of the account of a run."""
    return read_jsonl(path / TIMING)


def record_death(path: Path, pid: int, status: int) -> None:
    """Notes that the attempt of that process of this machine has just ended."""
    begun = [row for row in read_timing(path) if "began" in row][-1:]
    if begun and (begun[0]["host"], begun[0]["pid"]) == (socket.gethostname(), pid):
        row = {"attempt": begun[0]["attempt"], "died": status, **timestamp()}
        journal = JsonlWriter(path / TIMING)
        journal.append(row)
        journal.close()


def total_seconds(path: Path) -> dict[str, float]:
    """Seconds of the whole run by state, over all its attempts.

    `lost` is work that was done again by a later attempt, and what came between the
    last note and a death that somebody saw; `down` is between attempts. Every second
    from the first attempt's beginning to the last note is in one state.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    rows = read_timing(path)
    for row, before, reached in zip(
        rows, [{}, *rows], _find_resume_steps(rows), strict=False
    ):
        if "began" in row and before:
            ago = row["clock"] - row["began"]
            then = {name: row[name] - ago for name in ("clock", "wall")}
            seconds["down"] += _seconds_between(before, row | then)
        elif "died" in row:
            seconds["lost"] += _seconds_between(before, row)
        again = row.get("step", 0) > reached
        for state, n in row.get("seconds", {}).items():
            seconds["lost" if again and state not in FIXED_COSTS else state] += n
    return dict(seconds)


def _find_resume_steps(rows: list[dict[str, Any]]) -> list[float]:
    """For each line the earliest step that an attempt after it went on from."""
    found, step = [], math.inf
    for row in reversed(rows):
        found.append(step)
        step = min(step, float(row["step"])) if "began" in row else step
    return found[::-1]


def _seconds_between(before: dict[str, Any], after: dict[str, Any]) -> float:
    """Seconds between two moments; where the machine was started anew, by the wall."""
    clock = "clock" if before["boot"] == after["boot"] else "wall"
    return max(after[clock] - before[clock], 0.0)
