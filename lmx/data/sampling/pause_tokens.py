"""Pauses between tokens, for a model to think in and not to predict.

Goyal et al. 2023, arXiv:2310.02226.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from lmx.config.registry import ConfigError, configurable
from lmx.data.dataset import Batch, DatasetConfig
from lmx.data.sampling.packing import DocumentSpan
from lmx.data.sampling.schedule import BatchSchedule, RowRequest
from lmx.data.sampling.source import DatasetWrapper, as_indexed, locate, schedule_of
from lmx.data.stateless_random import RandomStream, hash_u64


@configurable
@dataclass(frozen=True, kw_only=True)
class PauseTokens(DatasetConfig):
    """Another source, with pauses after randomly chosen tokens (section 3.1).

    A pause is one more token, the largest; it belongs to the document it stands in, and
    positions count it. What comes next is predicted at the last pause before it; that a
    pause comes is not to be learned. Rows keep their length: what no longer fits is
    left out. A model that is to pause before it answers is given pauses at the end of
    its prompt.

    Attributes:
        share: pauses for each token of a row, before its end is cut.
    """

    source: DatasetConfig
    rate: float = 0.1

    def __post_init__(self):
        if not 0.0 <= self.rate < float("inf"):
            raise ConfigError(f"PauseTokens.rate is {self.rate}: it must be 0 or more.")

    def open(self) -> "PauseTokensRows":
        return PauseTokensRows(
            source=self.source.open(), added_tokens=1, rate=self.rate
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PauseTokensRows(DatasetWrapper):
    """The rows of a source, with pauses."""

    rate: float

    @property
    def schedule(self) -> BatchSchedule:
        return schedule_of(self.source)

    def read(self, request: RowRequest) -> Batch:
        """Rows by their numbers, each with pauses of its own."""
        rows, length = request.rows[:, None], request.sequence_length
        pauses = round(self.rate * length)
        later = np.arange(1, length + pauses)  # a token stands before any pause
        drawn = hash_u64(request.seed, RandomStream.PAUSE, request.step, rows, later)
        chosen = later[drawn.argsort(axis=1)[:, :pauses]]
        is_pause = np.zeros((len(rows), length + pauses + 1), bool)
        np.put_along_axis(is_pause, chosen, True, axis=1)
        batch = as_indexed(self.source).read(request)
        return insert_pauses(batch, is_pause[:, : length + 1], self.pause_token)

    def origins(self, wanted: RowRequest) -> list[DocumentSpan]:
        """The documents of those rows, as far as they are not left out."""
        batch = self.read(wanted)
        text = np.where(batch.tokens == self.pause_token, 0, batch.segments)
        kept = dict(zip(wanted.rows.tolist(), text, strict=True))
        found = [
            origin._replace(length=int((kept[origin.row] == origin.segment).sum()))
            for origin in locate(self.source, wanted)
        ]
        return [origin for origin in found if origin.length]

    @property
    def pause_token(self) -> int:
        """The token."""
        return self.source.vocab

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return {**self.source.fingerprint, "pauses": f"{self.rate}"}


def insert_pauses(batch: Batch, is_pause: Bool[np.ndarray, "B S"], pause: int) -> Batch:
    """`batch_size` with tokens moved right to make room, S being one more than T."""
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
