"""A run that is killed, and killed elsewhere, beside the same run that is not."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmx.config.registry import ConfigError
from lmx.config.value import Config, explain_errors
from lmx.core.console import print_line
from lmx.core.sharding import Mesh
from lmx.faulttest.kill_point import STEP, KillPoint
from lmx.faulttest.process_group import (
    RunAttempt,
    Scenario,
    Topology,
    UnexpectedExitError,
    run_attempt,
)
from lmx.run.run_dir import read_metadata
from lmx.train.experiment import Experiment

BASELINE, KILLED, RESHARDED = "whole", "killed", "moved"
AXES = ("data", "fsdp", "expert", "context", "tensor", "stage")
CPU = "cpu"
# Processes, and meshes that they may have, where devices are faked.
FAKED_TOPOLOGIES = [
    (2, [{"fsdp": 2}, {"data": 2}, {"tensor": 2}]),
    (1, [{"data": 2, "fsdp": 2}, {"data": 4}, {"fsdp": 4}, {"data": 2}]),
]


@dataclass(frozen=True)
class KillSchedule:
    """What of an experiment decides when it can be killed.

    Attributes:
        saves: the steps after which the state is saved.
        due: the steps after which something else is due.
    """

    steps: int
    save_every: int
    keep: int
    save_steps: Sequence[int]
    hook_steps: set[int]
    mesh: Mesh

    @classmethod
    def from_config(cls, config: Config[Experiment]) -> "KillSchedule":
        """The plan of an experiment, which is built for it and not opened."""
        with explain_errors(config):
            experiment = config.build()
        steps, every = experiment.steps, experiment.checkpoint.every
        due = {steps} if experiment.hooks else set()
        for hook in experiment.hooks:
            often = getattr(hook, "every", steps)
            due |= set(range(often, steps + 1, often))
        saves = sorted({*range(every, steps + 1, every), steps})
        keep = experiment.checkpoint.keep
        return cls(steps, every, keep, saves, due, experiment.mesh)

    @property
    def topology(self) -> Topology:
        """One process with the devices that the page asks for, if they are CPUs."""
        sizes = asdict(self.mesh) | {"data": self.mesh.data or 1}
        return Topology(devices=math.prod(sizes.values()))


class ProgressBar:
    """How far a proof is: lives of a run, and the step that the present one reached."""

    def __init__(self, lives: int, steps: int):
        self.steps = steps
        self.bar = tqdm(total=lives, unit="life", dynamic_ncols=True, disable=None)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self.bar.close()

    @contextmanager
    def attempt(self, run: str, moment: KillPoint | None) -> Iterator[Any]:
        """One more life; inside, a function that hears of its steps."""
        self.bar.set_description(run)

        def told(step: int) -> None:
            self.bar.set_postfix_str(f"step {step}/{self.steps}", refresh=False)
            self.bar.update(0)

        yield told
        self.bar.update(1)
        if self.bar.disable:
            print_line(f"{run}: {f'killed {moment}' if moment else 'to its end'}")


def run_baseline(
    scenario: Scenario, topology: Topology, bar: ProgressBar
) -> RunAttempt:
    """The run that nobody disturbs."""
    with bar.attempt(BASELINE, None) as told:
        return run_attempt(scenario, BASELINE, topology, None, told)


def run_killed(
    scenario: Scenario,
    topology: Topology,
    kill_points: Sequence[KillPoint],
    bar: ProgressBar,
) -> list[list[RunAttempt]]:
    """The lives of a run that is killed at each moment, and then comes to its end.

    Where it ends before all have been met, as it may where a clock decides, another run
    meets the rest.
    """
    runs: list[list[RunAttempt]] = []
    left = list(kill_points)
    while left or not runs or runs[-1][-1].killed:
        if not runs or not runs[-1][-1].killed:
            runs.append([])
        run = f"{KILLED}-{len(runs)}"
        moment = left[0] if left else None
        with bar.attempt(run, moment) as told:
            life = run_attempt(scenario, run, topology, moment, told)
        runs[-1].append(life)
        if life.killed:
            left.pop(0)
    return runs


def other_topologies(
    plan: KillSchedule, metadata: Mapping[str, Any]
) -> list[list[Topology]]:
    """Where else the run can live, by turns; of each turn the first that is possible.

    CPUs are as many as they are said to be; other devices that are there are put along
    another axis.
    """
    here = {axis: n for axis, n in metadata["mesh"].items() if axis != "replica"}
    used = math.prod(here.values())
    if metadata["devices"].endswith(f" x {CPU}"):
        turns = FAKED_TOPOLOGIES
    else:
        along = [{axis: used} for axis in ("fsdp", "data", "tensor")]
        turns = [(1, along)] if used > 1 else []
    return [
        [
            _topology(plan.mesh.replica, processes, mesh)
            for mesh in meshes
            if mesh != here
        ]
        for processes, meshes in turns
    ]


def _topology(replicas: int, processes: int, mesh: Mapping[str, int]) -> Topology:
    """So many processes with as many devices as the mesh takes."""
    sizes = tuple({**dict.fromkeys(AXES, 1), **mesh}.items())
    return Topology(processes, replicas * math.prod(mesh.values()) // processes, sizes)


def run_resharded(
    scenario: Scenario,
    plan: KillSchedule,
    turns: Sequence[Sequence[Topology]],
    delay: float,
    bar: ProgressBar,
) -> tuple[list[RunAttempt], list[str]]:
    """The lives of a run that is killed and goes on elsewhere, turn by turn.

    Also why it could not go on in the places that refused it. Of many processes the
    last is killed.
    """
    stops = [plan.steps * (n + 1) // (len(turns) + 1) for n in range(len(turns))]
    lives: list[RunAttempt] = []
    refused: list[str] = []
    with bar.attempt(
        RESHARDED, moment := KillPoint(STEP, max(stops[0], 1), delay)
    ) as told:
        lives.append(run_attempt(scenario, RESHARDED, plan.topology, moment, told))
    for places, stop in zip(turns, [*stops[1:], None], strict=True):
        moment = KillPoint(STEP, max(stop, 1), delay) if stop else None
        with bar.attempt(RESHARDED, moment) as told:
            for place in places:
                try:
                    last = place.processes - 1
                    lives.append(
                        run_attempt(scenario, RESHARDED, place, moment, told, last)
                    )
                    break
                except UnexpectedExitError as error:
                    if error.status != 2:
                        raise
                    refused.append(f"{place}: {error}")
    if lives[-1].killed:
        with bar.attempt(RESHARDED, None) as told:
            lives.append(run_attempt(scenario, RESHARDED, plan.topology, None, told))
    return lives, refused


def create_folder(folder: Path) -> Path:
    """The folder of a proof, empty; refuses one that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there and is not empty: name another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def load_metadata(run: Path) -> dict[str, Any]:
    """What a run stands on."""
    return read_metadata(run)
