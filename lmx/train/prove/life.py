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

from lmx.core.lobby import AGAIN
from lmx.train.prove.moment import CLOCK, START, Moment
from lmx.train.record.directory import rows

LOOK = 0.05  # seconds between two looks at a run
LATE = 600.0  # seconds that the others may outlive a process that was killed
TIMED = (START, CLOCK)  # a process that starts does not look at a clock: we do
VICTIM = "lmx.train.prove.victim"


class LifeError(Exception):
    """A process ended otherwise than it should have."""

    def __init__(self, why: str, status: int | None):
        super().__init__(why)
        self.status = status


@dataclass(frozen=True)
class Place:
    """Where a run lives: on how many processes, with how many devices each."""

    processes: int = 1
    devices: int = 1  # where they are CPUs: of others there are as many as there are
    mesh: tuple[tuple[str, int], ...] = ()  # none: as the page says

    @property
    def words(self) -> list[str]:
        """What the page is told of it."""
        return [f"Mesh.{axis}={size}" for axis, size in self.mesh]

    def __str__(self):
        axes = " x ".join(f"{axis} {n}" for axis, n in self.mesh if n > 1)
        return (
            f"{self.processes} process{'es' * (self.processes > 1)} of {self.devices}"
            f" device{'s' * (self.devices > 1)}, mesh {axes or 'as in the page'}"
        )


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is run again and again: a page under overrides, by a module with words.

    Attributes:
        module: what `python -m` runs; it takes the words of `lmx train`.
        flags: of XLA, beside the number of devices.
    """

    module: str
    page: str
    words: Sequence[str]
    imports: Sequence[str]
    folder: Path
    flags: str = ""

    def command(self, run: str, place: Place) -> list[str]:
        """The words of the module that begin the run or go on with it."""
        told = [self.page, *self.words, *place.words]
        told += [word for name in self.imports for word in ("--import", name)]
        return ["train", *told, "--run", str(self.folder / run)]

    def environment(self, place: Place) -> dict[str, str]:
        """What every process of it finds: its devices, and what is compiled already."""
        devices = f"--xla_force_host_platform_device_count={place.devices}"
        kept = {
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        flags = " ".join([os.environ.get("XLA_FLAGS", ""), self.flags, devices])
        return {**kept, **os.environ, "XLA_FLAGS": flags.strip()}


@dataclass(frozen=True)
class Life:
    """What was seen of one life.

    Attributes:
        trace: the lines of each process; see `victim`.
        logged: the lines of metrics that were there when it ended.
        born, ended: when the first process began and the last was over, in seconds.
    """

    place: Place
    moment: Moment | None
    process: int
    command: list[str]
    statuses: list[int]
    trace: list[list[dict[str, Any]]]
    logged: list[dict[str, Any]]
    born: float
    ended: float

    @property
    def killed(self) -> bool:
        """Whether it met its moment."""
        return self.statuses[self.process] == -9

    @property
    def began(self) -> int | None:
        """The step it went on from; None if it did not come so far."""
        return next((x["from_step"] for x in self.trace[0] if "from_step" in x), None)

    @property
    def over(self) -> float:
        """When its command was done, by the same clock."""
        return next((x["at"] for x in self.trace[0] if "over" in x), self.ended)

    def batches(self) -> dict[int, int]:
        """A fingerprint of what each step was fed, in all processes together."""
        found: dict[int, int] = {}
        for lines in self.trace:
            for line in lines:
                if "batch" in line:
                    sum_ = found.get(line["step"], 0) + int(line["batch"], 16)
                    found[line["step"]] = sum_ % 2**64
        if len(self.trace) > 1:  # the last steps of one that was killed are in parts
            whole = min(_last(lines) for lines in self.trace)
            found = {step: mix for step, mix in found.items() if step <= whole}
        return found

    def plain(self) -> dict[str, Any]:
        """For a certificate."""
        return {
            "place": f"{self.place}",
            "began": self.began,
            "last": max(self.batches(), default=None),
            "died": f"{self.moment}" if self.killed else None,
            "moment": asdict(self.moment) if self.moment else None,
            "process": self.process,
            "statuses": self.statuses,
            "seconds": round(self.ended - self.born, 3),
            "command": self.command,
        }


def _last(lines: list[dict[str, Any]]) -> int:
    return max((line["step"] for line in lines if "batch" in line), default=0)


def live(
    trial: Trial,
    run: str,
    place: Place,
    moment: Moment | None,
    told: Callable[[int], object],
    process: int = 0,
) -> Life:
    """Starts the run or goes on with it; kills that process at the moment, if any.

    `told` hears which step is logged. Raises LifeError if a process ends otherwise
    than it should.
    """
    number = len(list(trial.folder.glob(f"traces/{run}-*")))
    traces = trial.folder / "traces" / f"{run}-{number:03d}"
    traces.mkdir(parents=True)
    command = trial.command(run, place)
    begun = time.monotonic()
    group = _start(trial, traces, place, moment, process, command)
    try:
        statuses = _watched(
            group,
            trial.folder / run,
            traces / f"{process}.jsonl",
            moment,
            process,
            told,
        )
    finally:
        for member in group:
            member.kill()
            member.wait()
    life = Life(
        place,
        moment,
        process,
        ["lmx", *command],
        statuses,
        [list(_lines(traces / f"{number}.jsonl")) for number in range(len(group))],
        list(rows(trial.folder / run)),
        begun,
        time.monotonic(),
    )
    _check(life, traces)
    return life


def _start(
    trial: Trial,
    traces: Path,
    place: Place,
    moment: Moment | None,
    process: int,
    command: list[str],
) -> list[subprocess.Popen]:
    """The processes, the one that dies knowing when; a parent can tell the time."""
    many = place.processes > 1
    seats = ["--processes", str(place.processes), "--coordinator", _door()]
    found = []
    for number in range(place.processes):
        own = [*command, *seats, "--process", str(number)] if many else command
        dies = number == process and moment and moment.kind not in TIMED
        plan = moment if dies else None
        told = [str(traces / f"{number}.jsonl"), json.dumps(plan and asdict(plan))]
        with (traces / f"{number}.log").open("w") as log:
            found.append(
                subprocess.Popen(
                    [sys.executable, "-m", VICTIM, *told, trial.module, *own],
                    env=trial.environment(place),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )
    return found


def _door() -> str:
    """Where the first process may listen: a port that is free now."""
    with socket.create_server(("localhost", 0)) as door:
        return f"localhost:{door.getsockname()[1]}"


def _watched(
    group: list[subprocess.Popen],
    run: Path,
    trace: Path,
    moment: Moment | None,
    process: int,
    told: Callable[[int], object],
) -> list[int]:
    """The status of each process, once all have ended; kills one if its time comes."""
    late: float | None = None
    since = time.monotonic() if moment and moment.kind == START else None
    while any(member.poll() is None for member in group):
        now, pause = time.monotonic(), LOOK
        if since is None and moment and moment.kind == CLOCK and _size(trace):
            since = now
        if moment and since is not None:
            left = since + moment.part - now
            pause = min(max(left, 0.0), LOOK) or LOOK
            if left <= 0:
                group[process].kill()
        if late is None and any(member.poll() is not None for member in group):
            late = now + LATE
        if late is not None and now > late:
            raise LifeError(f"not all processes of {run} ended in {LATE:.0f} s", None)
        told(newest(run))
        time.sleep(pause)
    return [member.returncode for member in group]


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def newest(run: Path) -> int:
    """The last step that is logged."""
    return max((row["step"] for row in rows(run)), default=0)


def _lines(trace: Path) -> Sequence[dict[str, Any]]:
    if not trace.is_file():
        return []
    return [json.loads(line) for line in trace.read_text().splitlines()]


def _check(life: Life, traces: Path) -> None:
    """Refuses an end that is neither the one that was meant nor a good one."""
    for number, status in enumerate(life.statuses):
        good = {0}
        if life.moment:
            good = {-9} if number == life.process else {AGAIN}
            good |= {0} if life.moment.kind in TIMED else set()
        if status not in good:
            log = (traces / f"{number}.log").read_text().strip().splitlines()
            said = "\n  ".join(log[-12:])
            raise LifeError(
                f"process {number} ended with {status}, not"
                f" {' or '.join(map(str, sorted(good)))}, where it was to be killed"
                f" {life.moment or 'never'}: {' '.join(life.command)}\n  {said}",
                status,
            )
