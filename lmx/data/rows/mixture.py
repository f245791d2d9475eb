"""Several sources in one, each row from one of them, by weights that may change."""

import functools
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from lmx.config.names import ConfigError, configurable
from lmx.core.batch import Batch
from lmx.data.batches import Rows, Source
from lmx.data.keyed import Purpose, hashed, permuted
from lmx.data.rows.numbered import Numbered, Over, numbered, origins
from lmx.data.rows.packing import Origin, padding
from lmx.data.rows.schedule import Course, Stepwise, Wanted, changes, value_at
from lmx.data.rows.share import Turns, whole
from lmx.data.tokenizers.codec import Codec


@configurable
@dataclass(frozen=True, kw_only=True)
class Part:
    """A source, and how much of it there is in a mixture.

    Attributes:
        weight: rows of it, to those of the others; 0 for the steps where it has none.
        loss: what the loss of its tokens counts, beside that of others.
    """

    source: Source
    weight: float | Stepwise = 1.0
    loss: float = 1.0

    def __post_init__(self):
        weights = [value_at(self.weight, step) for step in changes(self.weight)]
        for name, value in (
            *(("weight", weight) for weight in weights),
            ("loss", self.loss),
        ):
            if not 0 <= value < math.inf:
                raise ConfigError(
                    f"Part.{name} is {value}: it must be 0 or more, and finite."
                )


@configurable
@dataclass(frozen=True, kw_only=True)
class Mixture(Source):
    """Rows of several sources, as many of each as its weight is of all weights.

    While weights and shapes stay, after n rows each part has had within one row of its
    share of n, and has exactly its share whenever a round is over. Each part goes
    through epochs of its own: its rows are numbered as if it were read alone. Where a
    batch has them is drawn anew each step. Parts have one tokenizer, and one schedule
    of batch and length, which is the mixture's.
    """

    parts: Mapping[str, Part]

    def __post_init__(self):
        if not self.parts:
            raise ConfigError("Mixture.parts is empty: give {'a name': @Part(), ...}.")
        steps = changes(*(part.weight for part in self.parts.values()))
        for name, part in self.parts.items():
            if not any(value_at(part.weight, step) for step in steps):
                raise ConfigError(
                    f"part {name!r} of the mixture has weight 0 at every step: give it"
                    " some, or leave it out."
                )
        for step in steps:
            weights = [value_at(part.weight, step) for part in self.parts.values()]
            if not any(weights):
                raise ConfigError(
                    f"no part of the mixture has any weight at step {step}: one must."
                )
            whole(weights)

    def open(self) -> "MixtureRows":
        """Opens every part, and sees that they can be read together."""
        rows = {name: self._opened(name) for name in sorted(self.parts)}
        (first, one), *others = rows.items()
        for name, other in others:
            if other.course != one.course:
                raise ConfigError(
                    f"parts {first!r} and {name!r} of the mixture differ in batch or"
                    " length: bind both once, as in Tokens.batch, for all of them."
                )
            if _digest(other) != _digest(one):
                raise ConfigError(
                    f"parts {first!r} and {name!r} of the mixture have different"
                    " tokenizers: a number must mean the same in both."
                )
        return MixtureRows(parts={name: self.parts[name] for name in rows}, rows=rows)

    def _opened(self, name: str) -> Numbered:
        rows: Rows = self.parts[name].source.open()
        inner = rows
        while isinstance(inner, Over):
            inner = inner.rows
        if isinstance(inner, MixtureRows):
            raise ConfigError(
                f"part {name!r} of the mixture is a mixture: make its parts parts of"
                " this one, their weights multiplied."
            )
        return numbered(rows)


def _digest(rows: Rows) -> str | None:
    return None if rows.tokenizer is None else rows.tokenizer.digest


class Span(NamedTuple):
    """Steps alike in shape and weights."""

    first: int  # step
    batch: int
    length: int
    turns: Turns
    given: list[int]  # rows of this length that each part gave before


@dataclass(frozen=True, kw_only=True, eq=False)
class MixtureRows:
    """The rows of a mixture, its parts in the order of their names."""

    parts: Mapping[str, Part]
    rows: Mapping[str, Numbered]

    @functools.cached_property
    def spans(self) -> list[Span]:
        """The spans in order, each with what came before it."""
        weights = [part.weight for part in self.parts.values()]
        firsts = {stage.first for stage in self.course.stages} | {*changes(*weights)}
        spans, given = [], {}
        for first in sorted(firsts):
            if spans:
                last = spans[-1]
                more = last.turns.before((first - last.first) * last.batch)
                given[last.length] = list(map(sum, zip(last.given, more, strict=True)))
            _, batch, length = self.course.at(first)
            turns = Turns([value_at(weight, first) for weight in weights])
            so_far = given.get(length, [0] * len(weights))
            spans.append(Span(first, batch, length, turns, so_far))
        return spans

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        """Those rows of the batch of that step: a pure function of its arguments."""
        return self.read(self.course.wanted(seed, step, rows))

    def read(self, wanted: Wanted) -> Batch:
        """The wanted rows of that step, each from the part whose turn it is."""
        batch = padding(len(wanted.rows), wanted.length)
        for name, here, asked in self._turns(wanted):
            some = self.rows[name].read(asked)
            for field, found in zip(batch, some, strict=True):
                field[here] = found
            batch.weights[here] *= np.float32(self.parts[name].loss)
        return batch

    def origins(self, wanted: Wanted) -> list[Origin]:
        """The documents of the wanted rows, their sources as in `part/source`."""
        found = [
            origin._replace(source=f"{name}/{origin.source}")
            for name, _, asked in self._turns(wanted)
            for origin in origins(self.rows[name], asked)
        ]
        return sorted(found, key=lambda origin: origin[:2])

    def _turns(
        self, wanted: Wanted
    ) -> Iterator[tuple[str, Bool[np.ndarray, " M"], Wanted]]:
        """Each part that has a turn, at which of the rows, and what it is asked for."""
        span = self._span(wanted.step)
        begin = (wanted.step - span.first) * span.batch
        key = hashed(wanted.seed, Purpose.PLACE, wanted.step).repeat(len(wanted.rows))
        part, nth = span.turns.of(begin + permuted(wanted.rows, span.batch, key))
        before = span.turns.before(begin)
        for index, name in enumerate(self.parts):
            here = part == index
            if not here.any():
                continue
            given, number = span.given[index], zlib.crc32(name.encode())
            yield (
                name,
                here,
                wanted._replace(
                    seed=int(hashed(wanted.seed, Purpose.PART, number)[0]),
                    rows=wanted.rows[here],
                    first=given + before[index],
                    numbers=given + nth[here],
                ),
            )

    def _span(self, step: int) -> Span:
        return next(span for span in reversed(self.spans) if span.first <= step)

    @property
    def course(self) -> Course:
        """That of its parts."""
        return next(iter(self.rows.values())).course

    @property
    def batch(self) -> int:
        return self.course.at(0).batch

    @property
    def length(self) -> int:
        return self.course.at(0).length

    @property
    def vocab(self) -> int:
        return max(rows.vocab for rows in self.rows.values())

    @property
    def steps(self) -> int | None:
        """None: a mixture has no end."""
        return None

    @property
    def tokenizer(self) -> Codec | None:
        return next(iter(self.rows.values())).tokenizer

    @property
    def token_bytes(self) -> Int32[np.ndarray, " V"] | None:
        """Those of the part with the most tokens."""
        return max(self.rows.values(), key=lambda rows: rows.vocab).token_bytes

    @property
    def fingerprint(self) -> Mapping[str, str]:
        found = {}
        for name, rows in self.rows.items():
            part = self.parts[name]
            found |= {f"{name}.{key}": word for key, word in rows.fingerprint.items()}
            found[f"{name}.weight"] = f"{part.weight} loss {part.loss}"
        return found
