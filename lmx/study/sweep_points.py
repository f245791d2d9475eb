"""The points of a sweep: grids, draws, ladders and branches of settings."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from lmx.config.registry import (
    ConfigError,
    OpenFraction,
    Positive,
    check_fields,
    configurable,
    require,
)
from lmx.models.params import train_flops_per_token
from lmx.train.experiment import Experiment
from lmx.train.optim.schedule import WSD

TRUNK = "trunk"  # stands for the folder of the last point that is no branch
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
        is_last = not any(isinstance(part, Branches) for part in self.parts[:-1])
        require(is_last, "Branches must be the last of CrossProduct.parts.")
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


@configurable
@dataclass(frozen=True, kw_only=True)
class Branches(SweepPoints):
    """Runs of several lengths with a `WSD` schedule, whose common steps are done once.

    The run of all `Experiment.steps` is the trunk. Each branch begins with its state at
    the last step before the decay of the branch, and ends with the same bits as a run
    of its own. Hu et al. 2024, arXiv:2404.06395, section 4.

    Attributes:
        fractions: the lengths of the branches, as fractions of `Experiment.steps`.
    """

    fractions: OpenFraction[tuple[float, ...]]

    def list_settings(self, load: Load) -> list[Settings]:
        experiment = load({})
        schedule, steps = experiment.schedule, experiment.steps
        if not isinstance(schedule, WSD):
            raise ConfigError("Branches needs Experiment.schedule = @WSD().")
        lengths = [round(fraction * steps) for fraction in self.fractions]
        starts = [schedule.find_decay(length) for length in lengths]
        require(
            schedule.warmup_steps < min(starts, default=0) and max(lengths) < steps,
            f"branches of {lengths} steps would decay from {starts}: this must be after"
            f" the warmup, and they must be shorter than Experiment.steps, {steps}."
            " Change Branches.fractions.",
        )
        trunk = {"Experiment.steps": steps, "CheckpointPolicy.at": f"{(*starts,)}"}
        begin = {"Experiment.init_from": "@InitFrom()", "InitFrom.take": "state"}
        begin |= {"InitFrom.path": TRUNK}
        branches = [
            {"Experiment.steps": length, **begin, "InitFrom.step": start}
            for length, start in zip(lengths, starts, strict=True)
        ]
        return [trunk, *branches]


def _measure(experiment: Experiment) -> tuple[int, int, float]:
    """Parameters, tokens of a step, and FLOPs per token (with attention)."""
    model, first = experiment.abstract_model(), experiment.data.schedule.stages[0]
    parameters = sum(x.size for x in jax.tree.leaves(model))
    flops = train_flops_per_token(model, first.sequence_length)
    return parameters, first.batch_size * first.sequence_length, flops
