"""Mixtures of datasets by weight, interleaved deterministically."""

import dataclasses
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from lmx.config.registry import NonNegative, Positive, configurable, require
from lmx.core.batch import Batch
from lmx.data.dataset import (
    Dataset,
    DatasetConfig,
    DatasetInfo,
    DatasetWrapper,
    DocumentSpan,
    refuse_rollouts,
    require_text,
)
from lmx.data.sampling.packing import empty_batch
from lmx.data.schedule import (
    BatchSchedule,
    PiecewiseConstant,
    RowRequest,
    list_changes,
    value_at,
)
from lmx.data.stateless_random import RandomStream, hash_u64, permute

MAX_PERIOD = 100_000  # rows


class WeightedInterleave:
    """Assigns rows to sources, one per turn, with the shortest exact period.

    After n turns, each source has had within one of n times its share. Tijdeman 1980,
    doi:10.1016/0012-365X(80)90269-1, theorem 1: of the sources that may take the next
    turn, the one with the earliest deadline takes it.
    """

    def __init__(self, weights: Sequence[int | float]):
        self.ratio = integer_ratio(weights)
        self.cycle = np.array(_build_cycle(self.ratio), np.int64)
        is_turn = self.cycle[:, None] == np.arange(len(weights))
        self.before = is_turn.cumsum(axis=0) - is_turn  # turns of each source, earlier

    def assign(
        self, turns: Int64[np.ndarray, " M"]
    ) -> tuple[Int64[np.ndarray, " M"], Int64[np.ndarray, " M"]]:
        """The source of each turn, and the number of turns that source had before."""
        periods, turn = np.divmod(turns, len(self.cycle))
        source = self.cycle[turn]
        return source, periods * np.array(self.ratio)[source] + self.before[
            turn, source
        ]

    def count_before(self, turn: int) -> Int64[np.ndarray, " sources"]:
        periods, turn = divmod(turn, len(self.cycle))
        return periods * np.array(self.ratio) + self.before[turn]


def integer_ratio(weights: Sequence[int | float]) -> list[int]:
    """The smallest integers in the ratio of the weights, read as decimal numbers."""
    exact = [Fraction(repr(float(weight))) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    numbers = [int(weight * scale) for weight in exact]
    numbers = [number // math.gcd(*numbers) for number in numbers]
    require(
        sum(numbers) <= MAX_PERIOD,
        f"weights of {', '.join(f'{w:g}' for w in weights)} have a period of"
        f" {sum(numbers)} rows, and {MAX_PERIOD} is the maximum: use fewer digits.",
    )
    return numbers


def _build_cycle(ratio: Sequence[int]) -> list[int]:
    """The source of each turn of one period, by earliest deadline.

    Turn j of source i is allowed from (j + 1/d) / w on, and its deadline is
    (j + 1 - 1/d) / w, where w is its share and d = 2 (n - 1) for n sources. Times are
    in units in which they are whole numbers; turns count from 1.
    """
    shares = {i: share for i, share in enumerate(ratio) if share}
    period, scale = sum(ratio), math.lcm(*shares.values())
    d = 2 * max(len(shares) - 1, 1)
    units = {i: scale // share for i, share in shares.items()}
    start = {i: period * unit for i, unit in units.items()}
    deadline = {i: (d - 1) * unit for i, unit in units.items()}
    cycle = []
    for turn in range(1, period + 1):
        now = turn * d * scale
        source = min((i for i in units if start[i] <= now), key=deadline.__getitem__)
        start[source] += d * period * units[source]
        deadline[source] += d * units[source]
        cycle.append(source)
    return cycle


@configurable
@dataclass(frozen=True, kw_only=True)
class MixtureComponent:
    """A dataset and its share of a mixture.

    Attributes:
        weight: rows, relative to the weights of the other components. That of a
            schedule can be 0 at some steps.
        loss_weight: factor of the loss weights of its tokens.
    """

    source: DatasetConfig
    weight: Positive[float | PiecewiseConstant] = 1.0
    loss_weight: NonNegative[float] = 1.0


@configurable
@dataclass(frozen=True, kw_only=True)
class Mixture(DatasetConfig):
    """Rows of several datasets, in proportion to their weights.

    While weights and shapes are constant, each component is within one row of its exact
    share after any number of rows, and has exactly its share after each period. Each
    component has its own epochs: its rows come in the order in which they come when it
    is read alone. The positions of its rows in a batch are random for each step. The
    components must have the same tokenizer and the same schedule.
    """

    components: Mapping[str, MixtureComponent]

    def __post_init__(self):
        require(
            self.components,
            "Mixture.components is empty: set {'NAME': @MixtureComponent(), ...}.",
        )
        steps = list_changes(*(c.weight for c in self.components.values()))
        for name, component in self.components.items():
            require(
                any(value_at(component.weight, step) for step in steps),
                f"component {name!r} of the mixture has weight 0 at every step: set"
                " a positive weight, or remove it.",
            )
        for step in steps:
            weights = [value_at(c.weight, step) for c in self.components.values()]
            require(
                any(weights),
                f"no component of the mixture has a positive weight at step {step}:"
                " at least one must.",
            )
            integer_ratio(weights)

    @property
    def schedule(self) -> BatchSchedule:
        return next(iter(self.components.values())).source.schedule

    def open(self) -> "MixtureDataset":
        """Opens all components and checks that they agree."""
        datasets = {name: self._open(name) for name in sorted(self.components)}
        (first, one), *others = ((n, data.info) for n, data in datasets.items())
        for name, other in others:
            require(
                other.schedule == one.schedule,
                f"components {first!r} and {name!r} of the mixture differ in"
                " batch_size or sequence_length: bind both once for all of them, as"
                " in TextDataset.batch_size.",
            )
            require(
                _tokenizer_digest(other) == _tokenizer_digest(one),
                f"components {first!r} and {name!r} of the mixture have different"
                " tokenizers: set the same tokenizer for both.",
            )
        components = {name: self.components[name] for name in datasets}
        return MixtureDataset(components=components, datasets=datasets)

    def _open(self, name: str) -> Dataset:
        require_text(self.components[name].source, "Mixture")
        dataset = inner = self.components[name].source.open()
        refuse_rollouts(dataset, "Mixture")
        while isinstance(inner, DatasetWrapper):
            inner = inner.source
        require(
            not isinstance(inner, MixtureDataset),
            f"component {name!r} of the mixture is a mixture: add its components to"
            " this mixture, with the product of both weights.",
        )
        return dataset


def _tokenizer_digest(info: DatasetInfo) -> str | None:
    return info.tokenizer and info.tokenizer.digest


class MixtureStage(NamedTuple):
    """Steps with the same shape and weights."""

    first_step: int
    batch_size: int
    sequence_length: int
    interleave: WeightedInterleave


@dataclass(frozen=True, kw_only=True, eq=False)
class MixtureDataset(Dataset):
    """The rows of a mixture. Its components are sorted by name."""

    components: Mapping[str, MixtureComponent]
    datasets: Mapping[str, Dataset]

    @cached_property
    def info(self) -> DatasetInfo:
        infos = {name: dataset.info for name, dataset in self.datasets.items()}
        fingerprint = {}
        for name, component in self.components.items():
            weights = f"{component.weight} loss {component.loss_weight}"
            entries = {**infos[name].fingerprint, "weight": weights}
            fingerprint |= {f"{name}.{key}": text for key, text in entries.items()}
        return dataclasses.replace(
            next(iter(infos.values())),
            vocab=max(info.vocab for info in infos.values()),
            fingerprint=fingerprint,
            steps=None,
        )

    @cached_property
    def stages(self) -> list[MixtureStage]:
        schedule = self.info.schedule
        weights = [component.weight for component in self.components.values()]
        first_steps = {stage.first_step for stage in schedule.stages}
        stages = []
        for step in sorted(first_steps | {*list_changes(*weights)}):
            _, batch_size, length = schedule.stage_at(step)
            interleave = WeightedInterleave([value_at(w, step) for w in weights])
            stages.append(MixtureStage(step, batch_size, length, interleave))
        return stages

    def read(self, request: RowRequest) -> Batch:
        batch = empty_batch(len(request.rows), request.sequence_length)
        for name, is_own, own_request in self._split_request(request):
            rows = self.datasets[name].read(own_request)
            for field, own_field in zip(batch, rows, strict=True):
                field[is_own] = own_field
            batch.weights[is_own] *= np.float32(self.components[name].loss_weight)
        return batch

    def locate(self, request: RowRequest) -> list[DocumentSpan]:
        """The documents of the requested rows; their sources are `component/source`."""
        spans = [
            span._replace(source=f"{name}/{span.source}")
            for name, _, own_request in self._split_request(request)
            for span in self.datasets[name].locate(own_request)
        ]
        return sorted(spans, key=lambda span: span[:2])

    def _split_request(
        self, request: RowRequest
    ) -> Iterator[tuple[str, Bool[np.ndarray, " M"], RowRequest]]:
        """Each component that has some of the rows, which rows, and its request."""
        seed, step, rows = request.seed, request.step, request.rows
        reached = [stage for stage in self.stages if stage.first_step <= step]
        stage = reached[-1]
        first = (step - stage.first_step) * stage.batch_size
        key = hash_u64(seed, RandomStream.POSITION, step).repeat(len(rows))
        turns = first + permute(rows, stage.batch_size, key)
        component, nth = stage.interleave.assign(turns)
        before = stage.interleave.count_before(first)
        earlier = np.zeros_like(before)  # rows of this length from earlier stages
        for one, following in pairwise(reached):
            if one.sequence_length == stage.sequence_length:
                steps = following.first_step - one.first_step
                earlier += one.interleave.count_before(steps * one.batch_size)
        for index, name in enumerate(self.components):
            is_own = component == index
            if not is_own.any():
                continue
            name_hash = zlib.crc32(name.encode())
            own_request = request._replace(
                seed=int(hash_u64(seed, RandomStream.COMPONENT, name_hash)[0]),
                rows=rows[is_own],
                rows_before=int(earlier[index] + before[index]),
                indices=earlier[index] + nth[is_own],
            )
            yield name, is_own, own_request
