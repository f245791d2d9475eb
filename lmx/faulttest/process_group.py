"""Runs one attempt of a run as real processes, and records what happened."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from lmx.config.value import Config, explain_errors
from lmx.core.console import print_line
from lmx.core.rendezvous import EXIT_RESTART
from lmx.faulttest.kill_point import MAX_DELAY, STARTUP, KillPoint
from lmx.run.jsonl import read_jsonl
from lmx.run.run_dir import read_metrics
from lmx.train.experiment import Experiment

POLL_INTERVAL = 0.05  # seconds
EXIT_TIMEOUT = 600.0  # seconds that other processes may outlive the first that exits
LOG_LINES = 12  # of a log in an error
INJECTOR = "lmx.faulttest.injector"
SIGKILLED = -9


class UnexpectedExitError(Exception):
    """A process exited with a status that its kill point does not explain."""

    def __init__(self, message: str, status: int | None):
        super().__init__(message)
        self.status = status
        self.exit_status = 2 if status == 2 else 1


@dataclass(frozen=True)
class Topology:
    """Number of processes, devices of each, and the mesh over them.

    Attributes:
        devices: CPU devices to emulate; other devices are used as they are found.
        mesh: sizes by axis; empty: those of the config.
    """

    processes: int = 1
    devices: int = 1
    mesh: tuple[tuple[str, int], ...] = ()

    def __str__(self):
        axes = " x ".join(f"{axis} {n}" for axis, n in self.mesh if n > 1)
        return (
            f"{self.processes} process{'es' * (self.processes > 1)} of {self.devices}"
            f" device{'s' * (self.devices > 1)}, mesh {axes or 'of the config'}"
        )


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """The experiment under test.

    Attributes:
        config: the resolved experiment.
        file, overrides, imports: the arguments of `lmx train` that give this config.
        folder: holds all runs, traces, logs and the report.
    """

    config: Config[Experiment]
    file: str
    overrides: Sequence[str]
    imports: Sequence[str] = ()
    folder: Path

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment, built and not opened."""
        with explain_errors(self.config):
            return self.config.build()

    def build_command(self, run: str, topology: Topology) -> list[str]:
        """Arguments of `lmx` that start or resume the run."""
        mesh = [f"Mesh.{axis}={size}" for axis, size in topology.mesh]
        imports = [word for name in self.imports for word in ("--import", name)]
        options = [*imports, "--run", f"{self.folder / run}"]
        return ["train", self.file, *self.overrides, *mesh, *options]

    def build_env(self, topology: Topology) -> dict[str, str]:
        """The environment of every process: its devices and a shared compile cache."""
        devices = f"--xla_force_host_platform_device_count={topology.devices}"
        cache = {
            "JAX_COMPILATION_CACHE_DIR": f"{self.folder / 'compiled'}",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        flags = f"{os.environ.get('XLA_FLAGS', '')} {devices}".strip()
        return {**cache, **os.environ, "XLA_FLAGS": flags}


@dataclass(frozen=True, kw_only=True)
class RunAttempt:
    """One attempt of a run, from start to exit.

    Attributes:
        process: index of the process that `kill_point` is for.
        traces: the events of each process, written by `injector`.
        metrics: lines of metrics.jsonl at its end.
        started, ended: seconds of a monotonic clock.
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
        """Whether the kill point was reached."""
        return self.statuses[self.process] == SIGKILLED

    @property
    def start_step(self) -> int | None:
        """The step that it resumed from; None before the training loop."""
        return next((x["from_step"] for x in self.traces[0] if "from_step" in x), None)

    @property
    def finished_at(self) -> float:
        """When the command of the first process was done, by the same clock."""
        return next((x["at"] for x in self.traces[0] if "finished" in x), self.ended)

    @property
    def losses(self) -> dict[int, float]:
        """The loss of every finished step, to the bit."""
        trace = self.traces[0]
        return {x["done"]: float.fromhex(x["loss"]) for x in trace if "loss" in x}

    @property
    def batches(self) -> dict[int, int]:
        """A fingerprint of every batch, summed over all processes.

        Steps that not every process started are left out.
        """
        each = [
            {x["step"]: int(x["batch"], 16) for x in trace if "batch" in x}
            for trace in self.traces
        ]
        last = min(max(parts, default=0) for parts in each)
        return {
            step: sum(parts[step] for parts in each) % 2**64
            for step in each[0]
            if step <= last
        }

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "topology": f"{self.topology}",
            "start_step": self.start_step,
            "last_step": max(self.batches, default=None),
            "killed": f"{self.kill_point}" if self.killed else None,
            "kill_point": asdict(self.kill_point) if self.kill_point else None,
            "process": self.process,
            "statuses": self.statuses,
            "seconds": round(self.ended - self.started, 3),
            "command": self.command,
        }


class RunRecord(NamedTuple):
    """A run and its attempts, in order."""

    folder: Path
    attempts: list[RunAttempt]


def run_attempt(
    scenario: Scenario,
    run: str,
    topology: Topology,
    kill_point: KillPoint | None = None,
    process: int = 0,
) -> RunAttempt:
    """Starts or resumes the run; kills that process at the kill point, if any.

    Raises UnexpectedExitError if a process exits with any other status than it should.
    """
    number = len(list(scenario.folder.glob(f"traces/{run}-*")))
    folder = scenario.folder / "traces" / f"{run}-{number:03d}"
    folder.mkdir(parents=True)
    command, started = scenario.build_command(run, topology), time.monotonic()
    points = [kill_point if n == process else None for n in range(topology.processes)]
    group = _start_processes(folder, command, scenario.build_env(topology), points)
    try:
        _wait(group, process, kill_point, folder)
    finally:
        for member in group:
            member.kill()
            member.wait()
    attempt = RunAttempt(
        topology=topology,
        kill_point=kill_point,
        process=process,
        command=["lmx", *command],
        statuses=[member.returncode for member in group],
        traces=[read_jsonl(folder / f"{n}.jsonl") for n in range(len(group))],
        metrics=list(read_metrics(scenario.folder / run)),
        started=started,
        ended=time.monotonic(),
    )
    _check_statuses(attempt, folder)
    result = f"killed {kill_point}" if attempt.killed else "finished"
    print_line(f"{run}, attempt {number + 1}: {result}")
    return attempt


def _start_processes(
    folder: Path,
    command: list[str],
    env: dict[str, str],
    kill_points: Sequence[KillPoint | None],
) -> list[subprocess.Popen]:
    """One process for each kill point. `_wait` kills at timed ones."""
    count, group = len(kill_points), []
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    cluster = ["--processes", f"{count}", "--coordinator", address, "--process"]
    for index, point in enumerate(kill_points):
        fields = asdict(point) if point and point.kind not in MAX_DELAY else None
        arguments = [f"{folder / f'{index}.jsonl'}", json.dumps(fields), *command]
        arguments += [*cluster, f"{index}"] if count > 1 else []
        with (folder / f"{index}.log").open("w") as log:
            group.append(
                subprocess.Popen(
                    [sys.executable, "-m", INJECTOR, *arguments],
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )
    return group


def _wait(
    group: list[subprocess.Popen],
    process: int,
    kill_point: KillPoint | None,
    folder: Path,
) -> None:
    """Waits until all processes exit. Kills one at a timed kill point."""
    deadline = kill_at = None
    point = kill_point if kill_point and kill_point.kind in MAX_DELAY else None
    while any(member.poll() is None for member in group):
        now = time.monotonic()
        if deadline is None and any(member.poll() is not None for member in group):
            deadline = now + EXIT_TIMEOUT
        if deadline is not None and now > deadline:
            message = f"a process of {folder} did not exit in {EXIT_TIMEOUT:.0f} s"
            raise UnexpectedExitError(message, None)
        if point and (point.kind == STARTUP or _finished_step(folder, process)):
            kill_at, point = now + point.delay, None
        if kill_at is not None and now >= kill_at:
            group[process].kill()
            kill_at = None
        time.sleep(
            POLL_INTERVAL if kill_at is None else min(POLL_INTERVAL, kill_at - now)
        )


def _finished_step(folder: Path, process: int) -> bool:
    """Whether the process is past its first step, which compiles."""
    return any("done" in event for event in read_jsonl(folder / f"{process}.jsonl"))


def _check_statuses(attempt: RunAttempt, folder: Path) -> None:
    point = attempt.kill_point
    for index, status in enumerate(attempt.statuses):
        allowed = {SIGKILLED if index == attempt.process else EXIT_RESTART}
        allowed = allowed if point else {0}
        if point and point.kind in MAX_DELAY:
            allowed.add(0)
        if status not in allowed:
            log = (folder / f"{index}.log").read_text().strip().splitlines()
            tail = "\n  ".join(log[-LOG_LINES:])
            raise UnexpectedExitError(
                f"process {index} exited with {status}, expected"
                f" {' or '.join(map(str, sorted(allowed)))}; kill point:"
                f" {point or 'none'}; command: {' '.join(attempt.command)}\n  {tail}",
                status,
            )
