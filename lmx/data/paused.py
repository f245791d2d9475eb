"""Pauses between tokens, for a model to think in and not to predict.

Goyal et al. 2023, arXiv:2310.02226.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32

from lmx.config.names import ConfigError, configurable
from lmx.data.batches import Batch, Rows, Source
from lmx.data.keyed import Purpose, hashed
from lmx.data.tokenizers.codec import Codec


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
        return PausedRows(rows=self.source.open(), share=self.share)


@dataclass(frozen=True, kw_only=True, eq=False)
class PausedRows:
    """The rows of a source, with pauses."""

    rows: Rows
    share: float

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        """Those rows of the batch of that step: a pure function of its arguments."""
        row = np.arange(self.batch)[rows][:, None]
        pauses = round(self.share * self.length)
        later = np.arange(1, self.length + pauses)  # a token stands before any pause
        drawn = hashed(seed, Purpose.PAUSE, step, row, later).argsort(axis=1)[
            :, :pauses
        ]
        is_pause = np.zeros((len(row), self.length + pauses + 1), bool)
        np.put_along_axis(is_pause, later[drawn], True, axis=1)
        batch = self.rows.batch_at(seed, step, rows)
        return with_pauses(batch, is_pause[:, : self.length + 1], self.pause)

    @property
    def pause(self) -> int:
        """The token."""
        return self.rows.vocab

    @property
    def batch(self) -> int:
        return self.rows.batch

    @property
    def length(self) -> int:
        return self.rows.length

    @property
    def vocab(self) -> int:
        return self.rows.vocab + 1

    @property
    def steps(self) -> int | None:
        return self.rows.steps

    @property
    def tokenizer(self) -> Codec | None:
        """That of the text, which has no pauses."""
        return self.rows.tokenizer

    @property
    def token_bytes(self) -> Int32[np.ndarray, " V"] | None:
        sizes = self.rows.token_bytes
        return None if sizes is None else np.append(sizes, np.int32(0))

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
