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
from typing import Any

from lmx.config.value import Config, explain_errors
from lmx.core.console import print_line
from lmx.core.rendezvous import EXIT_RESTART
from lmx.faulttest.kill_point import TIMED, KillPoint
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
    """Number of processes, devices of each, and the mesh over them."""

    processes: int = 1
    devices: int = 1  # CPU devices to emulate; others are used as they are found
    mesh: tuple[tuple[str, int], ...] = ()  # sizes by axis; empty: as in the config

    def __str__(self):
        axes = " x ".join(f"{axis} {n}" for axis, n in self.mesh if n > 1)
        return (
            f"{self.processes} process{'es' * (self.processes > 1)} of {self.devices}"
            f" device{'s' * (self.devices > 1)}, mesh {axes or 'of the config'}"
        )


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """The experiment under test."""

    config: Config[Experiment]
    file: str  # with overrides and imports, the arguments of `lmx train`
    overrides: Sequence[str]
    imports: Sequence[str] = ()
    folder: Path  # of all runs, traces, logs and the report

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
    """One attempt of a run, from start to exit."""

    run: Path  # its folder
    topology: Topology
    kill_point: KillPoint | None  # of the last process
    command: list[str]
    statuses: list[int]
    traces: list[list[dict[str, Any]]]  # events of each process, as in `injector`
    metrics: list[dict[str, Any]]  # lines of metrics.jsonl at its end
    started: float  # seconds of a monotonic clock, as `ended`
    ended: float

    @property
    def killed(self) -> bool:
        """Whether the kill point was reached."""
        return self.statuses[-1] == SIGKILLED

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
        """A fingerprint of each batch that every process read, summed over them."""
        each = [
            {x["step"]: int(x["batch"], 16) for x in trace if "batch" in x}
            for trace in self.traces
        ]
        steps = sorted(set.intersection(*map(set, each)))
        return {step: sum(parts[step] for parts in each) % 2**64 for step in steps}

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "topology": f"{self.topology}",
            "start_step": self.start_step,
            "last_step": max(self.batches, default=None),
            "killed": f"{self.kill_point}" if self.killed else None,
            "kill_point": asdict(self.kill_point) if self.kill_point else None,
            "statuses": self.statuses,
            "seconds": round(self.ended - self.started, 3),
            "command": self.command,
        }


def run_attempt(
    scenario: Scenario,
    run: str,
    topology: Topology,
    kill_point: KillPoint | None = None,
) -> RunAttempt:
    """Starts or resumes the run; kills its last process at the kill point, if any.

    Raises UnexpectedExitError if a process exits with any other status than it should.
    """
    number = len(list(scenario.folder.glob(f"traces/{run}-*")))
    folder = scenario.folder / "traces" / f"{run}-{number:03d}"
    folder.mkdir(parents=True)
    command, started = scenario.build_command(run, topology), time.monotonic()
    points = [*[None] * (topology.processes - 1), kill_point]
    group = _start_processes(folder, command, scenario.build_env(topology), points)
    try:
        _wait(group)
    finally:
        for member in group:
            member.kill()
            member.wait()
    attempt = RunAttempt(
        run=scenario.folder / run,
        topology=topology,
        kill_point=kill_point,
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
    """One process for each kill point."""
    count, group = len(kill_points), []
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    cluster = ["--processes", f"{count}", "--coordinator", address, "--process"]
    for index, point in enumerate(kill_points):
        fields = json.dumps(asdict(point) if point else None)
        arguments = [f"{folder / f'{index}.jsonl'}", fields, *command]
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


def _wait(group: Sequence[subprocess.Popen]) -> None:
    """Waits until all processes exit, some time after the first one at the latest."""
    while all(member.poll() is None for member in group):
        time.sleep(POLL_INTERVAL)
    for member in group:
        try:
            member.wait(EXIT_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise UnexpectedExitError(
                f"a process did not exit: {error}", None
            ) from None


def _check_statuses(attempt: RunAttempt, folder: Path) -> None:
    point, statuses = attempt.kill_point, attempt.statuses
    expected = [0] * len(statuses)
    if point:
        expected = [EXIT_RESTART] * (len(statuses) - 1) + [SIGKILLED]
    may_finish = point is not None and point.kind in TIMED
    pairs = enumerate(zip(statuses, expected, strict=True))
    wrong = [i for i, (a, b) in pairs if a != b and not (may_finish and a == 0)]
    if not wrong:
        return
    index = wrong[0]
    log = (folder / f"{index}.log").read_text().strip().splitlines()
    tail = "\n  ".join(log[-LOG_LINES:])
    raise UnexpectedExitError(
        f"process {index} exited with {statuses[index]}, expected {expected[index]};"
        f" kill point: {point or 'none'};"
        f" command: {' '.join(attempt.command)}\n  {tail}",
        statuses[index],
    )
