"""Sweeps: runs of one experiment that differ in some settings."""

import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lmx.config.registry import ConfigError, configurable, require
from lmx.config.value import Config
from lmx.core.console import print_line
from lmx.core.files import write_atomic
from lmx.run.lock import Lock, acquire_lock
from lmx.run.overview import Row, list_runs
from lmx.run.run_dir import CONFIG, RunDir, read_metadata, read_run_ids
from lmx.study.sweep_points import TRUNK, Setting, Settings, SweepPoints
from lmx.train.checkpoint.manager import CheckpointDir
from lmx.train.experiment import Experiment, load_experiment

CLAIMS, FAILED = ".claims", "failed"  # a folder of a sweep, and a file of a claim
POLL = 2.0  # seconds between looks at runs of other workers
STOPPED = (130, 143)  # exit statuses of a run that was asked to stop


@configurable
@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One experiment at several points.

    Attributes:
        experiment: a config, by its path or its name.
        settings: of all points, as overrides of the command line.
    """

    experiment: str
    points: SweepPoints
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def list_runs(self) -> list["SweepRun"]:
        """The runs, checked against the config: each resolves, and no two are equal."""
        base = dict(self.settings)

        def load(settings: Settings) -> Experiment:
            return self._resolve({**base, **settings}).build()

        points = self.points.list_settings(load)
        require(points and all(points), "Sweep.points has no points: give it values.")
        shown = _find_names(points)
        runs, known, trunk = [], {}, ""
        for settings in points:
            name = _name_point({x: settings[x] for x in shown if x in settings})
            try:
                config = self._resolve({**base, **settings})
            except ConfigError as error:
                raise ConfigError(f"point {name}: {error}") from None
            other = known.setdefault(config.run_id(), name)
            message = f"the points {other} and {name} are the same run"
            require(other is name, f"{message}: drop one.")
            taken = any(run.name == name for run in runs)
            require(not taken, f"two points have the name {name}: change a value.")
            is_branch = settings.get("InitFrom.path") == TRUNK
            trunk = trunk if is_branch else name
            arguments = [self.experiment, *_format({**base, **settings})]
            runs.append(SweepRun(name, arguments, config, trunk if is_branch else None))
        return runs

    def _resolve(self, settings: Settings) -> Config[Experiment]:
        return load_experiment(self.experiment, _format(settings))


class SweepRun(NamedTuple):
    """One run of a sweep."""

    name: str  # of its folder
    arguments: list[str]  # of `lmx train`: an experiment and overrides
    config: Config[Experiment]
    trunk: str | None = None  # the name of the run that it is a branch of

    @property
    def first_step(self) -> int:
        """The step of the state that it begins with; 0 without one."""
        init_from = self.config.fields["init_from"]
        takes_state = init_from and init_from.fields["take"] == "state"
        return init_from.fields["step"] or 0 if takes_state else 0


def _format(settings: Settings) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]


def _find_names(points: Sequence[Settings]) -> list[str]:
    """The first settings that are enough to tell the points apart."""
    shown: list[str] = []
    for name in dict.fromkeys(name for settings in points for name in settings):
        before, after = (
            len({tuple(settings.get(x) for x in names) for settings in points})
            for names in (shown, [*shown, name])
        )
        shown += [name] if after > before or not shown else []
    return shown


def _name_point(settings: Settings) -> str:
    """A readable name for a folder, by the parameters where they are unique."""
    last = [name.rpartition(".")[2] for name in settings]
    parts = []
    for (name, value), short in zip(settings.items(), last, strict=True):
        label = short if last.count(short) == 1 else name
        parts.append(f"{label}={value}")
    return re.sub(r"[^\w.,=+-]+", "_", ",".join(parts))


Start = Callable[[SweepRun, Path, Sequence[int]], int]


def _check_same(run: SweepRun, path: Path) -> None:
    """Refuses the folder of a run with other settings."""
    require(
        not (path / CONFIG).is_file() or run.config.run_id() in read_run_ids(path),
        f"{path} is a run with other settings: name another folder with --out.",
    )


def is_done(folder: Path) -> bool:
    """Whether the run in a folder is finished."""
    return (folder / CONFIG).is_file() and "final" in read_metadata(folder)


def run_sweep(runs: Sequence[SweepRun], folder: Path, start: Start) -> int:
    """Trains the runs that nobody else does, until all are done. Returns 0 or a status.

    Any number of processes can do so with the same folder. `start` trains a run in its
    folder, or resumes it, and returns the exit status; what it starts must inherit the
    file descriptors that it is given, so that the run stays locked until that has
    ended. The run of a worker that dies is resumed by another one; one that fails is
    tried by one worker only. A branch waits for the checkpoint of its trunk.
    """
    left, worst = list(runs), 0
    for run in runs:
        _check_same(run, folder / run.name)
    marks = {run.name: _read_mark(folder, run.name) for run in runs}
    while left:
        waiting = []
        for run in left:
            status = _try_run(run, folder, start, marks)
            if status in STOPPED:
                return status
            waiting += [run] if status is None else []
            worst = max(worst, status or 0)
        if len(waiting) == len(left):
            time.sleep(POLL)
        left = waiting
    return worst


def _try_run(
    run: SweepRun, folder: Path, start: Start, marks: Mapping[str, str]
) -> int | None:
    """Its status; None while another process has it. `marks` are of old failures."""
    path, claim = folder / run.name, folder / CLAIMS / run.name
    if is_done(path):
        return 0
    if run.trunk:
        trunk = folder / run.trunk
        is_over = is_done(trunk)  # before the look for its checkpoint
        checkpoints = CheckpointDir(RunDir(trunk, writable=False).checkpoint_folder)
        if run.first_step not in checkpoints.list_steps():
            if is_over:
                print_line(f"{run.name}: {trunk} has no checkpoint {run.first_step}")
            return 2 if is_over else _read_new_failure(folder, run.trunk, marks)
        path_of_trunk = f"InitFrom.path={str(trunk)!r}"
        run = run._replace(arguments=[*run.arguments, path_of_trunk])
    claim.mkdir(parents=True, exist_ok=True)
    try:
        lock = acquire_lock(claim)
    except ConfigError:
        return None
    try:
        if status := _read_new_failure(folder, run.name, marks):
            return status
        if is_done(path):
            return 0
        print_line(f"{run.name}: {path}")
        status = start(run, path, [lock.file] if isinstance(lock, Lock) else [])
        if status and status not in STOPPED:
            write_atomic(claim / FAILED, f"{status} {uuid.uuid4()}".encode())
        return status
    finally:
        lock.release()


def _read_new_failure(folder: Path, name: str, marks: Mapping[str, str]) -> int | None:
    """By the content of the mark, not by its time: clocks of file servers differ."""
    is_new = _read_mark(folder, name) != marks.get(name)
    return read_failure(folder, name) if is_new else None


def read_failure(folder: Path, name: str) -> int | None:
    """The exit status with which a run failed last; None if it did not."""
    status = _read_mark(folder, name).partition(" ")[0]
    return int(status) if status.isdecimal() else None


def _read_mark(folder: Path, name: str) -> str:
    """The status of a failure and what tells it from others; empty if it did not."""
    try:
        return (folder / CLAIMS / name / FAILED).read_text(errors="replace")
    except OSError:
        return ""


def list_status(runs: Sequence[SweepRun], folder: Path) -> list[Row]:
    """A row for each run, as of `lmx runs`, those that were not started among them."""
    rows = {row["run"]: row for row in list_runs(folder)}
    for run in runs:
        path = folder / run.name
        _check_same(run, path)
        status = read_failure(folder, run.name)
        state = f"failed with {status}" if status else "not started"
        steps = run.config.fields["steps"]
        new = {"run": f"{path}", "state": state, "step": 0, "steps": steps}
        rows.setdefault(f"{path}", new)
    return [rows[f"{folder / run.name}"] for run in runs]
