"""Sweeps: runs of one experiment that differ in some settings."""

import itertools
import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from lmx.config.registry import (
    ConfigError,
    Positive,
    check_fields,
    configurable,
    require,
)
from lmx.config.value import Config
from lmx.core.console import print_line
from lmx.core.files import write_atomic
from lmx.models.params import train_flops_per_token
from lmx.run.lock import Lock, acquire_lock
from lmx.run.overview import Row, list_runs
from lmx.run.run_dir import CONFIG, read_metadata, read_run_ids
from lmx.train.experiment import Experiment, load_experiment

CLAIMS, FAILED = ".claims", "failed"  # a folder of a sweep, and a file of a claim
POLL = 2.0  # seconds between looks at runs of other workers
STOPPED = (130, 143)  # exit statuses of a run that was asked to stop
Setting = bool | int | float | str
Settings = Mapping[str, Setting]  # as overrides of the command line
Load = Callable[[Settings], Experiment]


class SweepPoints(ABC):
    """The points of a sweep."""

    @abstractmethod
    def list_settings(self, load: Load) -> list[Settings]:
        """The settings of each point; `load` builds the experiment with some."""


@configurable
@dataclass(frozen=True, kw_only=True)
class Grid(SweepPoints):
    """All combinations of the values of settings, the last changing first."""

    values: Mapping[str, tuple[Setting, ...]]

    def list_settings(self, load: Load) -> list[Settings]:
        combinations = itertools.product(*self.values.values())
        return [dict(zip(self.values, each, strict=True)) for each in combinations]


@configurable
@dataclass(frozen=True, kw_only=True)
class Zip(SweepPoints):
    """The first values of all settings, then the second ones, and so on."""

    values: Mapping[str, tuple[Setting, ...]]

    def list_settings(self, load: Load) -> list[Settings]:
        counts = {name: len(values) for name, values in self.values.items()}
        equal = len(set(counts.values())) == 1
        require(equal, f"Zip.values needs as many values of each setting: {counts}.")
        rows = zip(*self.values.values(), strict=True)
        return [dict(zip(self.values, row, strict=True)) for row in rows]


@configurable
@dataclass(frozen=True, kw_only=True)
class Random(SweepPoints):
    """Values drawn between two ends, uniformly in their logs.

    Bergstra and Bengio 2012, Random Search for Hyper-Parameter Optimization.
    """

    ranges: Mapping[str, tuple[float, float]]
    count: Positive[int]
    seed: int = 0

    def __post_init__(self):
        is_valid = all(0 < low < high for low, high in self.ranges.values())
        check_fields(self, ranges=(is_valid, "pairs of a low and a high end, above 0"))

    def list_settings(self, load: Load) -> list[Settings]:
        rng = np.random.default_rng(self.seed)
        logs = {name: np.log(ends) for name, ends in self.ranges.items()}
        return [
            {
                name: float(f"{math.exp(rng.uniform(*x)):.4g}")
                for name, x in logs.items()
            }
            for _ in range(self.count)
        ]


@configurable
@dataclass(frozen=True, kw_only=True)
class CrossProduct(SweepPoints):
    """Each point of the first part with each point of the next ones.

    A `Ladder` derives its steps from the settings of the parts before it.
    """

    parts: tuple[SweepPoints, ...]

    def list_settings(self, load: Load) -> list[Settings]:
        points: list[Settings] = [{}]
        for part in self.parts:
            points = [
                {**point, **more}
                for point in points
                for more in part.list_settings(partial(_load_with, load, point))
            ]
        return points


def _load_with(load: Load, settings: Settings, more: Settings) -> Experiment:
    return load({**settings, **more})


@configurable
@dataclass(frozen=True, kw_only=True)
class Ladder(SweepPoints):
    """Models of growing depth; width, heads, hidden width and steps follow from it.

    Attributes:
        aspect_ratio: width / depth; the width is rounded to a multiple of a head.
        hidden: the setting of the feed-forward width, and `hidden_ratio`, that to the
            width of the model.
        tokens_per_parameter: of training. About 20 is compute-optimal. Hoffmann et al.
            2022, arXiv:2203.15556.
    """

    depths: Positive[tuple[int, ...]]
    aspect_ratio: Positive[float] = 64.0
    head_dim: Positive[int] = 64
    hidden: str = "SwiGLU.hidden"
    hidden_ratio: Positive[float] = 8 / 3
    tokens_per_parameter: Positive[float] = 20.0

    def list_settings(self, load: Load) -> list[Settings]:
        points = []
        for settings in map(self._build_size, self.depths):
            parameters, tokens, _ = _measure(load(settings))
            steps = math.ceil(self.tokens_per_parameter * parameters / tokens)
            points.append({**settings, "Experiment.steps": steps})
        return points

    def _build_size(self, depth: int) -> dict[str, Setting]:
        heads = max(round(self.aspect_ratio * depth / self.head_dim), 1)
        width = heads * self.head_dim
        return {
            "Decoder.depth": depth,
            "Decoder.width": width,
            "Attention.heads": heads,
            "Attention.kv_heads": heads,
            "Attention.head_dim": self.head_dim,
            self.hidden: 8 * round(self.hidden_ratio * width / 8),
        }


@configurable
@dataclass(frozen=True, kw_only=True)
class IsoFLOP(Ladder):
    """The models of a ladder at each of some budgets of FLOPs, which set the steps."""

    budgets: Positive[tuple[float, ...]]

    def list_settings(self, load: Load) -> list[Settings]:
        points = []
        for budget, settings in itertools.product(
            self.budgets, map(self._build_size, self.depths)
        ):
            _, tokens, flops = _measure(load(settings))
            steps = round(budget / flops / tokens)
            require(
                steps,
                f"a step of depth {settings['Decoder.depth']} takes more than"
                f" {budget:.3g} FLOPs: raise IsoFLOP.budgets or lower the batch size.",
            )
            points.append({**settings, "Experiment.steps": steps})
        return points


def _measure(experiment: Experiment) -> tuple[int, int, float]:
    """Parameters, tokens of a step, and FLOPs per token (with attention)."""
    model, first = experiment.abstract_model(), experiment.data.schedule.stages[0]
    parameters = sum(x.size for x in jax.tree.leaves(model))
    flops = train_flops_per_token(model, first.sequence_length)
    return parameters, first.batch_size * first.sequence_length, flops


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
        runs, known = [], {}
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
            arguments = [self.experiment, *_format({**base, **settings})]
            runs.append(SweepRun(name, arguments, config))
        return runs

    def _resolve(self, settings: Settings) -> Config[Experiment]:
        return load_experiment(self.experiment, _format(settings))


class SweepRun(NamedTuple):
    """One run of a sweep."""

    name: str  # of its folder
    arguments: list[str]  # of `lmx train`: an experiment and overrides
    config: Config[Experiment]


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
    tried by one worker only.
    """
    began, left, worst = time.time(), list(runs), 0
    for run in runs:
        _check_same(run, folder / run.name)
    while left:
        waiting = []
        for run in left:
            status = _try_run(run, folder, start, began)
            if status in STOPPED:
                return status
            waiting += [run] if status is None else []
            worst = max(worst, status or 0)
        if len(waiting) == len(left):
            time.sleep(POLL)
        left = waiting
    return worst


def _try_run(run: SweepRun, folder: Path, start: Start, began: float) -> int | None:
    """Its status; None while another process has it."""
    path, claim = folder / run.name, folder / CLAIMS / run.name
    failed = claim / FAILED
    if is_done(path):
        return 0
    claim.mkdir(parents=True, exist_ok=True)
    try:
        lock = acquire_lock(claim)
    except ConfigError:
        return None
    try:
        status = read_failure(folder, run.name)
        if status and failed.stat().st_mtime > began:
            return status
        if is_done(path):
            return 0
        print_line(f"{run.name}: {path}")
        status = start(run, path, [lock.file] if isinstance(lock, Lock) else [])
        if status and status not in STOPPED:
            write_atomic(failed, f"{status}".encode())
        return status
    finally:
        lock.release()


def read_failure(folder: Path, name: str) -> int | None:
    """The exit status with which a run failed last; None if it did not."""
    try:
        return int((folder / CLAIMS / name / FAILED).read_text())
    except (OSError, ValueError):
        return None


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
