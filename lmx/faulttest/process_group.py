"""One life of a run: real processes from start to end, and what was seen of it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmx.core.rendezvous import EXIT_RESTART
from lmx.faulttest.kill_point import STARTUP, TIMER, KillPoint
from lmx.run.run_dir import read_metrics

POLL_INTERVAL = 0.05  # seconds between two looks at a run
EXIT_TIMEOUT = 600.0  # seconds that the others may outlive a process that was killed
TIMED_KINDS = (STARTUP, TIMER)  # a process that starts does not look at a clock: we do
INJECTOR = "lmx.faulttest.injector"


class UnexpectedExitError(Exception):
    """A process exited with an unexpected status."""

    def __init__(self, reason: str, status: int | None):
        super().__init__(reason)
        self.status = status
        self.exit_status = 2 if status == 2 else 1


@dataclass(frozen=True)
class Topology:
    """Where a run lives: on how many processes, with how many devices each."""

    processes: int = 1
    devices: int = 1  # where they are CPUs: of others there are as many as there are
    mesh: tuple[tuple[str, int], ...] = ()  # none: as the page says

    @property
    def overrides(self) -> list[str]:
        """What the page is told of it."""
        return [f"Mesh.{axis}={size}" for axis, size in self.mesh]

    def __str__(self):
        axes = " x ".join(f"{axis} {n}" for axis, n in self.mesh if n > 1)
        return (
            f"{self.processes} process{'es' * (self.processes > 1)} of {self.devices}"
            f" device{'s' * (self.devices > 1)}, mesh {axes or 'as in the page'}"
        )


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is run again and again: a page under overrides, by a module with words.

    Attributes:
        module: what `python -m` runs; it takes the words of `lmx train`.
        flags: of XLA, beside the number of devices.
    """

    module: str
    config: str
    overrides: Sequence[str]
    imports: Sequence[str]
    folder: Path
    xla_flags: str = ""

    def build_command(self, run: str, topology: Topology) -> list[str]:
        """The words of the module that begin the run or go on with it."""
        told = [self.config, *self.overrides, *topology.overrides]
        told += [word for name in self.imports for word in ("--import", name)]
        return ["train", *told, "--run", str(self.folder / run)]

    def build_env(self, topology: Topology) -> dict[str, str]:
        """What every process of it finds: its devices, and what is compiled already."""
        devices = f"--xla_force_host_platform_device_count={topology.devices}"
        kept = {
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        flags = " ".join([os.environ.get("XLA_FLAGS", ""), self.xla_flags, devices])
        return {**kept, **os.environ, "XLA_FLAGS": flags.strip()}


@dataclass(frozen=True)
class RunAttempt:
    """What was seen of one life.

    Attributes:
        trace: the lines of each process; see `victim`.
        logged: the lines of metrics that were there when it ended.
        born, ended: when the first process began and the last was over, in seconds.
    """

    topology: Topology
    kill_point: KillPoint | None
    process: int
    command: list[str]
    statuses: list[int]
    traces: list[list[dict[str, Any]]]
    metrics: list[dict[str, Any]]
    started: float
    ended: float

    @property
    def killed(self) -> bool:
        """Whether it met its moment."""
        return self.statuses[self.process] == -9

    @property
    def start_step(self) -> int | None:
        """The step it went on from; None if it did not come so far."""
        return next((x["from_step"] for x in self.traces[0] if "from_step" in x), None)

    @property
    def finished_at(self) -> float:
        """When its command was done, by the same clock."""
        return next((x["at"] for x in self.traces[0] if "over" in x), self.ended)

    def batch_fingerprints(self) -> dict[int, int]:
        """A fingerprint of what each step was fed, in all processes together."""
        found: dict[int, int] = {}
        for lines in self.traces:
            for line in lines:
                if "batch" in line:
                    sum_ = found.get(line["step"], 0) + int(line["batch"], 16)
                    found[line["step"]] = sum_ % 2**64
        if len(self.traces) > 1:  # the last steps of one that was killed are in parts
            whole = min(_last_step(lines) for lines in self.traces)
            found = {step: mix for step, mix in found.items() if step <= whole}
        return found

    def to_json(self) -> dict[str, Any]:
        """For a certificate."""
        return {
            "place": f"{self.topology}",
            "began": self.start_step,
            "last": max(self.batch_fingerprints(), default=None),
            "died": f"{self.kill_point}" if self.killed else None,
            "moment": asdict(self.kill_point) if self.kill_point else None,
            "process": self.process,
            "statuses": self.statuses,
            "seconds": round(self.ended - self.started, 3),
            "command": self.command,
        }


def _last_step(trace: list[dict[str, Any]]) -> int:
    return max((line["step"] for line in trace if "batch" in line), default=0)


def run_attempt(
    scenario: Scenario,
    run: str,
    topology: Topology,
    kill_point: KillPoint | None,
    on_step: Callable[[int], object],
    process: int = 0,
) -> RunAttempt:
    """Starts the run or goes on with it; kills that process at the moment, if any.

    `told` hears which step is logged. Raises LifeError if a process ends otherwise
    than it should.
    """
    number = len(list(scenario.folder.glob(f"traces/{run}-*")))
    traces = scenario.folder / "traces" / f"{run}-{number:03d}"
    traces.mkdir(parents=True)
    command = scenario.build_command(run, topology)
    begun = time.monotonic()
    group = _start_processes(scenario, traces, topology, kill_point, process, command)
    try:
        statuses = _wait(
            group,
            scenario.folder / run,
            traces / f"{process}.jsonl",
            kill_point,
            process,
            on_step,
        )
    finally:
        for member in group:
            member.kill()
            member.wait()
    life = RunAttempt(
        topology,
        kill_point,
        process,
        ["lmx", *command],
        statuses,
        [list(_read_trace(traces / f"{number}.jsonl")) for number in range(len(group))],
        list(read_metrics(scenario.folder / run)),
        begun,
        time.monotonic(),
    )
    _check_statuses(life, traces)
    return life


def _start_processes(
    scenario: Scenario,
    traces: Path,
    topology: Topology,
    kill_point: KillPoint | None,
    process: int,
    command: list[str],
) -> list[subprocess.Popen]:
    """The processes, the one that dies knowing when; a parent can tell the time."""
    many = topology.processes > 1
    seats = ["--processes", str(topology.processes), "--coordinator", _free_address()]
    found = []
    for number in range(topology.processes):
        own = [*command, *seats, "--process", str(number)] if many else command
        dies = number == process and kill_point and kill_point.kind not in TIMED_KINDS
        plan = kill_point if dies else None
        told = [str(traces / f"{number}.jsonl"), json.dumps(plan and asdict(plan))]
        with (traces / f"{number}.log").open("w") as log:
            found.append(
                subprocess.Popen(
                    [sys.executable, "-m", INJECTOR, *told, scenario.module, *own],
                    env=scenario.build_env(topology),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )
    return found


def _free_address() -> str:
    """Where the first process may listen: a port that is free now."""
    with socket.create_server(("localhost", 0)) as door:
        return f"localhost:{door.getsockname()[1]}"


def _wait(
    group: list[subprocess.Popen],
    run: Path,
    trace: Path,
    kill_point: KillPoint | None,
    process: int,
    on_step: Callable[[int], object],
) -> list[int]:
    """The status of each process, once all have ended; kills one if its time comes."""
    late: float | None = None
    since = time.monotonic() if kill_point and kill_point.kind == STARTUP else None
    while any(member.poll() is None for member in group):
        now, pause = time.monotonic(), POLL_INTERVAL
        if (
            since is None
            and kill_point
            and kill_point.kind == TIMER
            and _first_step_done(trace)
        ):
            since = now
        if kill_point and since is not None:
            left = since + kill_point.delay - now
            pause = min(max(left, 0.0), POLL_INTERVAL) or POLL_INTERVAL
            if left <= 0:
                group[process].kill()
        if late is None and any(member.poll() is not None for member in group):
            late = now + EXIT_TIMEOUT
        if late is not None and now > late:
            raise UnexpectedExitError(
                f"not all processes of {run} ended in {EXIT_TIMEOUT:.0f} s", None
            )
        on_step(last_logged_step(run))
        time.sleep(pause)
    return [member.returncode for member in group]


def _first_step_done(trace: Path) -> bool:
    """Whether its first step, which compiles, is done."""
    return trace.is_file() and b'"done"' in trace.read_bytes()


def last_logged_step(run: Path) -> int:
    """The last step that is logged."""
    return max((row["step"] for row in read_metrics(run)), default=0)


def _read_trace(trace: Path) -> Sequence[dict[str, Any]]:
    if not trace.is_file():
        return []
    return [json.loads(line) for line in trace.read_text().splitlines()]


def _check_statuses(attempt: RunAttempt, traces: Path) -> None:
    """Refuses an end that is neither the one that was meant nor a good one."""
    for number, status in enumerate(attempt.statuses):
        good = {0}
        if attempt.kill_point:
            good = {-9} if number == attempt.process else {EXIT_RESTART}
            good |= {0} if attempt.kill_point.kind in TIMED_KINDS else set()
        if status not in good:
            log = (traces / f"{number}.log").read_text().strip().splitlines()
            said = "\n  ".join(log[-12:])
            raise UnexpectedExitError(
                f"process {number} ended with {status}, not"
                f" {' or '.join(map(str, sorted(good)))}, where it was to be killed"
                f" {attempt.kill_point or 'never'}: {' '.join(attempt.command)}\n  {said}",
                status,
            )
