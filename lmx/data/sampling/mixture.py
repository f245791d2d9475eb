"""Several sources in one, each row from one of them, by weights that may change."""

import functools
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from lmx.config.registry import ConfigError, configurable
from lmx.core.batch import Batch
from lmx.data.dataset import Dataset, DatasetConfig
from lmx.data.sampling.interleave import WeightedInterleave, integer_ratio
from lmx.data.sampling.packing import DocumentSpan, empty_batch
from lmx.data.sampling.schedule import (
    BatchSchedule,
    PiecewiseConstant,
    RowRequest,
    list_changes,
    value_at,
)
from lmx.data.sampling.source import DatasetWrapper, IndexedDataset, as_indexed, locate
from lmx.data.stateless_random import RandomStream, hash_u64, permute
from lmx.data.tokenizer.base import Tokenizer


@configurable
@dataclass(frozen=True, kw_only=True)
class MixtureComponent:
    """A source, and how much of it there is in a mixture.

    Attributes:
        weight: rows of it, to those of the others; 0 for the steps where it has none.
        loss: what the loss of its tokens counts, beside that of others.
    """

    source: DatasetConfig
    weight: float | PiecewiseConstant = 1.0
    loss_weight: float = 1.0

    def __post_init__(self):
        weights = [value_at(self.weight, step) for step in list_changes(self.weight)]
        for name, value in (
            *(("weight", weight) for weight in weights),
            ("loss", self.loss_weight),
        ):
            if not 0 <= value < math.inf:
                raise ConfigError(
                    f"MixtureComponent.{name} is {value}: it must be 0 or more, and finite."
                )


@configurable
@dataclass(frozen=True, kw_only=True)
class Mixture(DatasetConfig):
    """Rows of several sources, as many of each as its weight is of all weights.

    While weights and shapes stay, after n rows each part has had within one row of its
    share of n, and has exactly its share whenever a round is over. Each part goes
    through epochs of its own: its rows are numbered as if it were read alone. Where a
    batch has them is drawn anew each step. Parts have one tokenizer, and one schedule
    of batch and length, which is the mixture's.
    """

    components: Mapping[str, MixtureComponent]

    def __post_init__(self):
        if not self.components:
            raise ConfigError(
                "Mixture.components is empty: give {'a name': @MixtureComponent(), ...}."
            )
        steps = list_changes(*(part.weight for part in self.components.values()))
        for name, part in self.components.items():
            if not any(value_at(part.weight, step) for step in steps):
                raise ConfigError(
                    f"part {name!r} of the mixture has weight 0 at every step: give it"
                    " some, or leave it out."
                )
        for step in steps:
            weights = [value_at(part.weight, step) for part in self.components.values()]
            if not any(weights):
                raise ConfigError(
                    f"no part of the mixture has any weight at step {step}: one must."
                )
            integer_ratio(weights)

    def open(self) -> "MixtureDataset":
        """Opens every part, and sees that they can be read together."""
        rows = {name: self._open_component(name) for name in sorted(self.components)}
        (first, one), *others = rows.items()
        for name, other in others:
            if other.schedule != one.schedule:
                raise ConfigError(
                    f"parts {first!r} and {name!r} of the mixture differ in batch or"
                    " length: bind both once, as in TextDataset.batch_size, for all of them."
                )
            if _digest(other) != _digest(one):
                raise ConfigError(
                    f"parts {first!r} and {name!r} of the mixture have different"
                    " tokenizers: a number must mean the same in both."
                )
        return MixtureDataset(
            components={name: self.components[name] for name in rows}, datasets=rows
        )

    def _open_component(self, name: str) -> IndexedDataset:
        rows: Dataset = self.components[name].source.open()
        inner = rows
        while isinstance(inner, DatasetWrapper):
            inner = inner.source
        if isinstance(inner, MixtureDataset):
            raise ConfigError(
                f"part {name!r} of the mixture is a mixture: make its parts parts of"
                " this one, their weights multiplied."
            )
        return as_indexed(rows)


def _digest(rows: Dataset) -> str | None:
    return None if rows.tokenizer is None else rows.tokenizer.digest


class MixtureStage(NamedTuple):
    """Steps alike in shape and weights."""

    first_step: int  # step
    batch_size: int
    sequence_length: int
    interleave: WeightedInterleave
    rows_before: list[int]  # rows of this length that each part gave before


@dataclass(frozen=True, kw_only=True, eq=False)
class MixtureDataset:
    """The rows of a mixture, its parts in the order of their names."""

    components: Mapping[str, MixtureComponent]
    datasets: Mapping[str, IndexedDataset]

    @functools.cached_property
    def stages(self) -> list[MixtureStage]:
        """The spans in order, each with what came before it."""
        weights = [part.weight for part in self.components.values()]
        firsts = {stage.first_step for stage in self.schedule.stages} | {
            *list_changes(*weights)
        }
        spans, given = [], {}
        for first in sorted(firsts):
            if spans:
                last = spans[-1]
                more = last.interleave.before((first - last.first) * last.batch_size)
                given[last.length] = list(
                    map(sum, zip(last.rows_before, more, strict=True))
                )
            _, batch, length = self.schedule.stage_at(first)
            turns = WeightedInterleave([value_at(weight, first) for weight in weights])
            so_far = given.get(length, [0] * len(weights))
            spans.append(MixtureStage(first, batch, length, turns, so_far))
        return spans

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        """Those rows of the batch of that step: a pure function of its arguments."""
        return self.read(self.schedule.request(seed, step, rows))

    def read(self, wanted: RowRequest) -> Batch:
        """The wanted rows of that step, each from the part whose turn it is."""
        batch = empty_batch(len(wanted.rows), wanted.sequence_length)
        for name, here, asked in self._split_request(wanted):
            some = self.datasets[name].read(asked)
            for field, found in zip(batch, some, strict=True):
                field[here] = found
            batch.weights[here] *= np.float32(self.components[name].loss_weight)
        return batch

    def locate(self, wanted: RowRequest) -> list[DocumentSpan]:
        """The documents of the wanted rows, their sources as in `part/source`."""
        found = [
            origin._replace(source=f"{name}/{origin.source}")
            for name, _, asked in self._split_request(wanted)
            for origin in locate(self.datasets[name], asked)
        ]
        return sorted(found, key=lambda origin: origin[:2])

    def _split_request(
        self, wanted: RowRequest
    ) -> Iterator[tuple[str, Bool[np.ndarray, " M"], RowRequest]]:
        """Each part that has a turn, at which of the rows, and what it is asked for."""
        span = self._stage_at(wanted.step)
        begin = (wanted.step - span.first_step) * span.batch_size
        key = hash_u64(wanted.seed, RandomStream.POSITION, wanted.step).repeat(
            len(wanted.rows)
        )
        part, nth = span.interleave.assign(
            begin + permute(wanted.rows, span.batch_size, key)
        )
        before = span.interleave.count_before(begin)
        for index, name in enumerate(self.components):
            here = part == index
            if not here.any():
                continue
            given, number = span.rows_before[index], zlib.crc32(name.encode())
            yield (
                name,
                here,
                wanted._replace(
                    seed=int(hash_u64(wanted.seed, RandomStream.COMPONENT, number)[0]),
                    rows=wanted.rows[here],
                    first=given + before[index],
                    indices=given + nth[here],
                ),
            )

    def _stage_at(self, step: int) -> MixtureStage:
        return next(span for span in reversed(self.stages) if span.first_step <= step)

    @property
    def schedule(self) -> BatchSchedule:
        """That of its parts."""
        return next(iter(self.datasets.values())).schedule

    @property
    def batch_size(self) -> int:
        return self.schedule.stage_at(0).batch_size

    @property
    def sequence_length(self) -> int:
        return self.schedule.stage_at(0).sequence_length

    @property
    def vocab(self) -> int:
        return max(rows.vocab for rows in self.datasets.values())

    @property
    def steps(self) -> int | None:
        """None: a mixture has no end."""
        return None

    @property
    def tokenizer(self) -> Tokenizer | None:
        return next(iter(self.datasets.values())).tokenizer

    @property
    def token_bytes(self) -> Int32[np.ndarray, " V"] | None:
        """Those of the part with the most tokens."""
        return max(self.datasets.values(), key=lambda rows: rows.vocab).token_bytes

    @property
    def fingerprint(self) -> Mapping[str, str]:
        found = {}
        for name, rows in self.datasets.items():
            part = self.components[name]
            found |= {f"{name}.{key}": word for key, word in rows.fingerprint.items()}
            found[f"{name}.weight"] = f"{part.weight} loss {part.loss_weight}"
        return found
