"""Goodput: assigns each second of each attempt at a run to one phase."""

import contextlib
import functools
import math
import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmx.config.json_object import check_kinds
from lmx.config.registry import ConfigError
from lmx.run.jsonl import JsonlWriter, read_jsonl
from lmx.run.run_dir import TIMING, RunDir

# Seconds since the machine booted, suspend included: the same clock in all processes,
# and unlike the wall clock it is never adjusted.
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
TRAINING_PHASES = ("step", "data", "log")  # utilization is measured over these
KINDS = {  # the types of the fields of a line
    **{"attempt": int, "step": int | None, "seconds": Mapping[str, float] | None},
    **dict.fromkeys(("started", "clock", "wall_time"), float | None),
    **{"boot_id": str | None, "host": str | None},
    **dict.fromkeys(("pid", "exit_status"), int | None),
}
FIXED_COSTS = {"start", "init", "restore", "compile"}  # of each attempt, however short


def now() -> float:
    """Seconds since the machine booted."""
    return time.clock_gettime(CLOCK)


def read_process_start() -> float:
    """When this process started, by the same clock; now if that is unknown."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return now()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


@functools.cache
def read_boot_id() -> str:
    """Identifies the current boot of this machine."""
    if BOOT_ID_FILE.exists():
        return BOOT_ID_FILE.read_text()[:8]
    return socket.gethostname()


def timestamp() -> dict[str, Any]:
    """The current time, by the clock of the machine and by the wall clock."""
    return {
        "boot_id": read_boot_id(),
        "clock": round(now(), 6),
        "wall_time": round(time.time(), 3),
    }


class TimeAccounting:
    """A clock with one current phase; phases nest, and no second counts twice.

    Phases: `start`, `init` or `restore`, `compile` (the first step of each
    shape), `data` (waiting for it), `step`, `log`, hooks by name, and `stop`. Each
    `record` appends to `timing.jsonl`; a kill loses the seconds after the last one.
    """

    def __init__(self, since: float | None = None):
        self.phase, self.since = "start", now() if since is None else since
        self.started = self.since
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.recorded = self.seconds.copy()
        self.run_dir: RunDir | None = None
        self.attempt = self.step = 0

    @contextlib.contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Counts the seconds inside as those of the phase."""
        previous = self.switch(phase)
        try:
            yield
        finally:
            self.switch(previous)

    def switch(self, phase: str) -> str:
        """Starts the phase; returns the one that it replaces."""
        previous, started, self.since = self.phase, self.since, now()
        self.seconds[previous] += self.since - started
        self.phase = phase
        return previous

    def get_state(self) -> tuple[str, float]:
        """The phase and when it started; changes whenever a phase starts or ends."""
        return self.phase, self.since

    def sum_seconds(self, *phases: str) -> float:
        """Seconds of these phases so far, in this attempt."""
        self.switch(self.phase)
        return sum(self.seconds[phase] for phase in phases)

    def start_attempt(self, run_dir: RunDir, step: int) -> None:
        """Records from now on; this attempt resumes from that step."""
        self.run_dir = run_dir
        self.attempt = 1 + sum("started" in row for row in read_timing(run_dir.path))
        process = {"host": socket.gethostname(), "pid": os.getpid()}
        started = round(self.started, 6)
        self._append(started=started, step=step, **process, **timestamp())
        self.record(step)

    def record(self, step: int) -> None:
        """Appends the seconds since the last record, with `step` steps done."""
        self.switch(self.phase)
        self.step = step
        spent = {p: round(n - self.recorded[p], 6) for p, n in self.seconds.items()}
        self.recorded = self.seconds.copy()
        spent = {phase: seconds for phase, seconds in spent.items() if seconds}
        time_now = timestamp() | {"clock": round(self.since, 6)}
        self._append(step=step, seconds=spent, **time_now)

    def _append(self, **row: Any) -> None:
        if self.run_dir is not None:
            self.run_dir.append(TIMING, {"attempt": self.attempt, **row})


def read_timing(path: Path) -> list[dict[str, Any]]:
    """The lines of `timing.jsonl` of a run, but those with values of wrong kinds."""
    rows = []
    for row in read_jsonl(path / TIMING):
        with contextlib.suppress(ConfigError):
            check_kinds(row, KINDS, TIMING)
            rows.append(row)
    return rows


def record_death(path: Path, pid: int, status: int) -> None:
    """Records the exit of the last attempt, if it was that process of this machine."""
    started = [row for row in read_timing(path) if "started" in row][-1:]
    for row in started:
        if (row["host"], row["pid"]) == (socket.gethostname(), pid):
            line = {"attempt": row["attempt"], "exit_status": status, **timestamp()}
            writer = JsonlWriter(path / TIMING)
            writer.append(line)
            writer.close()


def total_seconds(path: Path) -> dict[str, float]:
    """Seconds of the whole run by phase, over all its attempts.

    `lost` is work that a later attempt repeated, and time from the last record to an
    exit that the supervisor saw; `down` is the time between attempts. Each second from
    the first start to the last record is in one phase.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    rows = read_timing(path)
    for row, previous, resumed in zip(
        rows, [{}, *rows], _find_resume_steps(rows), strict=False
    ):
        if "started" in row and previous:
            ago = row["clock"] - row["started"]
            start = {name: row[name] - ago for name in ("clock", "wall_time")}
            seconds["down"] += _seconds_between(previous, row | start)
        elif "exit_status" in row:
            seconds["lost"] += _seconds_between(previous, row)
        repeated = row.get("step", 0) > resumed
        for phase, n in row.get("seconds", {}).items():
            seconds["lost" if repeated and phase not in FIXED_COSTS else phase] += n
    return dict(seconds)


def _find_resume_steps(rows: list[dict[str, Any]]) -> list[float]:
    """For each line the earliest step that a later attempt resumes from."""
    steps, earliest = [], math.inf
    for row in reversed(rows):
        steps.append(earliest)
        if "started" in row:
            earliest = min(earliest, float(row["step"]))
    return steps[::-1]


def _seconds_between(previous: dict[str, Any], row: dict[str, Any]) -> float:
    """Seconds between two timestamps; by the wall clock if the machine rebooted."""
    clock = "clock" if previous["boot_id"] == row["boot_id"] else "wall_time"
    return max(row[clock] - previous[clock], 0.0)
