"""Pause-token data transform.

Goyal et al. 2023, arXiv:2310.02226.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool

from lmx.config.registry import check_fields, configurable
from lmx.core.batch import Batch
from lmx.data.dataset import (
    DatasetInfo,
    DatasetWrapper,
    DocumentSpan,
    WrapperConfig,
)
from lmx.data.schedule import RowRequest
from lmx.data.stateless_random import RandomStream, hash_u64


@configurable
@dataclass(frozen=True, kw_only=True)
class PauseTokens(WrapperConfig):
    """Another dataset, with pause tokens after random tokens (section 3.1).

    The pause token is added to the vocabulary. A pause belongs to the document around
    it, and positions count it. The next token is predicted at the last pause before it,
    and the loss leaves out pauses as targets. Rows keep their length: what no longer
    fits is cut off. To use pauses at inference, append them to the prompt.

    Attributes:
        rate: pauses per token of a row, before its end is cut off.
    """

    rate: float = 0.1

    def __post_init__(self):
        is_valid = 0.0 <= self.rate < float("inf")
        check_fields(self, rate=(is_valid, "0 or more, and finite"))

    def open(self) -> "PauseTokensDataset":
        """Opens the source."""
        return PauseTokensDataset(source=self.source.open(), rate=self.rate)


@dataclass(frozen=True, kw_only=True, eq=False)
class PauseTokensDataset(DatasetWrapper):
    """The rows of a dataset, with pauses."""

    rate: float

    @property
    def pause_token(self) -> int:
        """The token after those of the source."""
        return self.source.info.vocab

    @cached_property
    def info(self) -> DatasetInfo:
        info = self.source.info
        fingerprint = {**info.fingerprint, "PauseTokens": f"{self.rate}"}
        return dataclasses.replace(info, vocab=info.vocab + 1, fingerprint=fingerprint)

    def read(self, request: RowRequest) -> Batch:
        rows, length = request.rows[:, None], request.sequence_length
        pauses = round(self.rate * length)
        candidates = np.arange(1, length + pauses)  # a row starts with a token
        stream = RandomStream.PAUSE
        drawn = hash_u64(request.seed, stream, request.step, rows, candidates)
        chosen = candidates[drawn.argsort(axis=1)[:, :pauses]]
        is_pause = np.zeros((len(rows), length + pauses + 1), bool)
        np.put_along_axis(is_pause, chosen, True, axis=1)
        batch = self.source.read(request)
        return insert_pauses(batch, is_pause[:, : length + 1], self.pause_token)

    def locate(self, request: RowRequest) -> list[DocumentSpan]:
        batch = self.read(request)
        text = np.where(batch.tokens == self.pause_token, 0, batch.segments)
        segments = dict(zip(request.rows.tolist(), text, strict=True))
        spans = [
            span._replace(length=int((segments[span.row] == span.segment).sum()))
            for span in self.source.locate(request)
        ]
        return [span for span in spans if span.length]


def insert_pauses(
    batch: Batch, is_pause: Bool[np.ndarray, "B S"], pause_token: int
) -> Batch:
    """A batch with pauses where `is_pause` is True. S is T + 1."""
    pauses = is_pause.cumsum(axis=1)[:, :-1]
    index = np.arange(pauses.shape[1]) - pauses  # of the token, or that before a pause
    tokens, targets, weights, positions, segments = (
        np.take_along_axis(x, index, axis=1) for x in batch
    )
    pause_now, pause_next = is_pause[:, :-1], is_pause[:, 1:]
    starts = np.diff(segments, axis=1, prepend=0) != 0
    before = np.maximum.accumulate(np.where(starts, pauses, 0), axis=1)
    shift = np.where(segments > 0, pauses - before, 0).astype(np.int32)
    return Batch(
        tokens=np.where(pause_now, np.int32(pause_token), tokens),
        targets=np.where(pause_next, np.int32(pause_token), targets),
        weights=np.where(pause_next, np.float32(0), weights),
        positions=positions + shift,
        segments=segments,
    )
