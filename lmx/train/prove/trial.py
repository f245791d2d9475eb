"""A run that is killed, and killed elsewhere, beside the same run that is not."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmx.config.names import ConfigError
from lmx.config.tree import Config, explained
from lmx.core.sharding import Mesh
from lmx.data.progress import say
from lmx.train.experiment import Experiment
from lmx.train.prove.life import Life, LifeError, Place, Trial, live
from lmx.train.prove.moment import STEP, Moment

WHOLE, KILLED, MOVED = "whole", "killed", "moved"
AXES = ("data", "fsdp", "expert", "context", "tensor", "stage")
CPU = "cpu"
# Processes, and meshes that they may have, where devices are faked.
FAKED = [
    (2, [{"fsdp": 2}, {"data": 2}, {"tensor": 2}]),
    (1, [{"data": 2, "fsdp": 2}, {"data": 4}, {"fsdp": 4}, {"data": 2}]),
]


@dataclass(frozen=True)
class Plan:
    """What of an experiment decides when it can be killed.

    Attributes:
        saves: the steps after which the state is saved.
        due: the steps after which something else is due.
    """

    steps: int
    every: int
    keep: int
    saves: Sequence[int]
    due: set[int]
    mesh: Mesh

    @classmethod
    def of(cls, config: Config[Experiment]) -> "Plan":
        """The plan of an experiment, which is built for it and not opened."""
        with explained(config):
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
    def place(self) -> Place:
        """One process with the devices that the page asks for, if they are CPUs."""
        sizes = asdict(self.mesh) | {"data": self.mesh.data or 1}
        return Place(devices=math.prod(sizes.values()))


class Bar:
    """How far a proof is: lives of a run, and the step that the present one reached."""

    def __init__(self, lives: int, steps: int):
        self.steps = steps
        self.bar = tqdm(total=lives, unit="life", dynamic_ncols=True, disable=None)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self.bar.close()

    @contextmanager
    def life(self, run: str, moment: Moment | None) -> Iterator[Any]:
        """One more life; inside, a function that hears of its steps."""
        self.bar.set_description(run)

        def told(step: int) -> None:
            self.bar.set_postfix_str(f"step {step}/{self.steps}", refresh=False)
            self.bar.update(0)

        yield told
        self.bar.update(1)
        if self.bar.disable:
            say(f"{run}: {f'killed {moment}' if moment else 'to its end'}")


def whole(trial: Trial, place: Place, bar: Bar) -> Life:
    """The run that nobody disturbs."""
    with bar.life(WHOLE, None) as told:
        return live(trial, WHOLE, place, None, told)


def killed(
    trial: Trial, place: Place, moments: Sequence[Moment], bar: Bar
) -> list[list[Life]]:
    """The lives of a run that is killed at each moment, and then comes to its end.

    Where it ends before all have been met, as it may where a clock decides, another run
    meets the rest.
    """
    runs: list[list[Life]] = []
    left = list(moments)
    while left or not runs or runs[-1][-1].killed:
        if not runs or not runs[-1][-1].killed:
            runs.append([])
        run = f"{KILLED}-{len(runs)}"
        moment = left[0] if left else None
        with bar.life(run, moment) as told:
            life = live(trial, run, place, moment, told)
        runs[-1].append(life)
        if life.killed:
            left.pop(0)
    return runs


def elsewhere(plan: Plan, card: Mapping[str, Any]) -> list[list[Place]]:
    """Where else the run can live, by turns; of each turn the first that is possible.

    CPUs are as many as they are said to be; other devices that are there are put along
    another axis.
    """
    here = {axis: n for axis, n in card["mesh"].items() if axis != "replica"}
    used = math.prod(here.values())
    if card["devices"].endswith(f" x {CPU}"):
        turns = FAKED
    else:
        along = [{axis: used} for axis in ("fsdp", "data", "tensor")]
        turns = [(1, along)] if used > 1 else []
    return [
        [_place(plan.mesh.replica, processes, mesh) for mesh in meshes if mesh != here]
        for processes, meshes in turns
    ]


def _place(replicas: int, processes: int, mesh: Mapping[str, int]) -> Place:
    """So many processes with as many devices as the mesh takes."""
    sizes = tuple({**dict.fromkeys(AXES, 1), **mesh}.items())
    return Place(processes, replicas * math.prod(mesh.values()) // processes, sizes)


def moved(
    trial: Trial, plan: Plan, turns: Sequence[Sequence[Place]], part: float, bar: Bar
) -> tuple[list[Life], list[str]]:
    """The lives of a run that is killed and goes on elsewhere, turn by turn.

    Also why it could not go on in the places that refused it. Of many processes the
    last is killed.
    """
    stops = [plan.steps * (n + 1) // (len(turns) + 1) for n in range(len(turns))]
    lives: list[Life] = []
    refused: list[str] = []
    with bar.life(MOVED, moment := Moment(STEP, max(stops[0], 1), part)) as told:
        lives.append(live(trial, MOVED, plan.place, moment, told))
    for places, stop in zip(turns, [*stops[1:], None], strict=True):
        moment = Moment(STEP, max(stop, 1), part) if stop else None
        with bar.life(MOVED, moment) as told:
            for place in places:
                try:
                    last = place.processes - 1
                    lives.append(live(trial, MOVED, place, moment, told, last))
                    break
                except LifeError as error:
                    if error.status != 2:
                        raise
                    refused.append(f"{place}: {error}")
    if lives[-1].killed:
        with bar.life(MOVED, None) as told:
            lives.append(live(trial, MOVED, plan.place, None, told))
    return lives, refused


def fresh_folder(folder: Path) -> Path:
    """The folder of a proof, empty; refuses one that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there and is not empty: name another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def card_of(run: Path) -> dict[str, Any]:
    """What a run stands on."""
    return json.loads((run / "card.json").read_text())
