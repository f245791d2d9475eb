"""Pauses between tokens, for a model to think in and not to predict.

Goyal et al. 2023, arXiv:2310.02226.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from lmx.config.names import ConfigError, configurable
from lmx.data.batches import Batch, Source
from lmx.data.keyed import Purpose, hashed
from lmx.data.rows.numbered import Over, course_of, numbered, origins
from lmx.data.rows.packing import Origin
from lmx.data.rows.schedule import Course, Wanted


@configurable
@dataclass(frozen=True, kw_only=True)
class Paused(Source):
    """Another source, with pauses after randomly chosen tokens (section 3.1).

    A pause is one more token, the largest; it belongs to the document it stands in, and
    positions count it. What comes next is predicted at the last pause before it; that a
    pause comes is not to be learned. Rows keep their length: what no longer fits is
    left out. A model that is to pause before it answers is given pauses at the end of
    its prompt.

    Attributes:
        share: pauses for each token of a row, before its end is cut.
    """

    source: Source
    share: float = 0.1

    def __post_init__(self):
        if not 0.0 <= self.share < float("inf"):
            raise ConfigError(f"Paused.share is {self.share}: it must be 0 or more.")

    def open(self) -> "PausedRows":
        return PausedRows(rows=self.source.open(), added=1, share=self.share)


@dataclass(frozen=True, kw_only=True, eq=False)
class PausedRows(Over):
    """The rows of a source, with pauses."""

    share: float

    @property
    def course(self) -> Course:
        return course_of(self.rows)

    def read(self, wanted: Wanted) -> Batch:
        """Rows by their numbers, each with pauses of its own."""
        rows, length = wanted.rows[:, None], wanted.length
        pauses = round(self.share * length)
        later = np.arange(1, length + pauses)  # a token stands before any pause
        drawn = hashed(wanted.seed, Purpose.PAUSE, wanted.step, rows, later)
        chosen = later[drawn.argsort(axis=1)[:, :pauses]]
        is_pause = np.zeros((len(rows), length + pauses + 1), bool)
        np.put_along_axis(is_pause, chosen, True, axis=1)
        batch = numbered(self.rows).read(wanted)
        return with_pauses(batch, is_pause[:, : length + 1], self.pause)

    def origins(self, wanted: Wanted) -> list[Origin]:
        """The documents of those rows, as far as they are not left out."""
        batch = self.read(wanted)
        text = np.where(batch.tokens == self.pause, 0, batch.segments)
        kept = dict(zip(wanted.rows.tolist(), text, strict=True))
        found = [
            origin._replace(length=int((kept[origin.row] == origin.segment).sum()))
            for origin in origins(self.rows, wanted)
        ]
        return [origin for origin in found if origin.length]

    @property
    def pause(self) -> int:
        """The token."""
        return self.rows.vocab

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return {**self.rows.fingerprint, "pauses": f"{self.share}"}


def with_pauses(batch: Batch, is_pause: Bool[np.ndarray, "B S"], pause: int) -> Batch:
    """`batch` with tokens moved right to make room, S being one more than T."""
    pauses = is_pause.cumsum(axis=1)[:, :-1]
    token = np.arange(pauses.shape[1]) - pauses  # at hand, or before the pause
    tokens, targets, weights, positions, segments = (
        np.take_along_axis(x, token, axis=1) for x in batch
    )
    here, ahead = is_pause[:, :-1], is_pause[:, 1:]
    begins = np.diff(segments, axis=1, prepend=0) != 0
    before = np.maximum.accumulate(np.where(begins, pauses, 0), axis=1)
    counted = np.where(segments > 0, pauses - before, 0).astype(np.int32)
    return Batch(
        tokens=np.where(here, np.int32(pause), tokens),
        targets=np.where(ahead, np.int32(pause), targets),
        weights=np.where(ahead, np.float32(0), weights),
        positions=positions + counted,
        segments=segments,
    )
