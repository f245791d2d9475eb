"""Documents with spans taken out and told after them, for a model to restore.

Raffel et al. 2020, arXiv:1910.10683, section 3.1.4, in one sequence as a decoder reads
it: Tay et al. 2022, arXiv:2205.05131, section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from lmx.config.registry import ConfigError, configurable
from lmx.data.dataset import Dataset, DatasetConfig
from lmx.data.sampling.transform import (
    DocumentTransform,
    RandomKey,
    WeightedTokens,
    concat,
    make_sentinel,
    resolve_sentinels,
)
from lmx.data.stateless_random import hash_u64

CORRUPTION_STREAM = 8  # the purpose, beside those of the other sources


@configurable
@dataclass(frozen=True, kw_only=True)
class SpanCorruption(DatasetConfig):
    """Another source, spans of whose documents are replaced by marks, each its own, and
    told at the end, each after its mark: A 0 C 1 E 0 B 1 D 2 for A B C D E.

    Spans and what stands between them have random lengths, with a given sum. Mixtures
    of such sources, of several rates and spans, are UL2's. Rows hold fewer tokens of
    the source, so that marks have room, and none is lost.

    Attributes:
        rate: the fraction of tokens that is taken out.
        span: tokens of a span, on average.
        marks: how many there are, further tokens above all others; or which tokens they
            are, by name or number. A document has at most one span less.
        room: tokens of a row that are kept for marks beside those of one document that
            fills the row; documents that find none left stay as they are.
        learned: whether all of such a document is to be predicted, or only its spans.
    """

    source: DatasetConfig
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    sentinels: int | tuple[str | int, ...] = 100
    reserved_tokens: int = 16
    loss_on: Literal["all", "spans"] = "spans"

    def __post_init__(self):
        if (
            not 0 < self.noise_density < 1
            or not self.mean_span_length >= 1
            or self.reserved_tokens < 0
        ):
            raise ConfigError(
                f"Corrupted has a rate of {self.noise_density}, spans of {self.mean_span_length} and a room"
                f" of {self.reserved_tokens}: a fraction above 0 and below 1, at least 1, and at"
                " least 0."
            )
        count = (
            self.sentinels if isinstance(self.sentinels, int) else len(self.sentinels)
        )
        if count < 2:
            raise ConfigError(
                f"SpanCorruption.sentinels are {count}: one span needs two."
            )

    def open(self) -> "SpanCorruptionRows":
        rows: Dataset = self.source.open()
        named = None if isinstance(self.sentinels, int) else self.sentinels
        count = (
            self.sentinels if isinstance(self.sentinels, int) else len(self.sentinels)
        )
        return SpanCorruptionRows(
            source=rows,
            added_tokens=0 if named else count,
            config=self,
            sentinels=resolve_sentinels(rows, named, count, "SpanCorruption.sentinels"),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SpanCorruptionRows(DocumentTransform):
    """The rows of a source, its documents with spans taken out."""

    config: SpanCorruption
    sentinels: tuple[int, ...]

    def source_length(self, length: int) -> int:
        """The most tokens that can be told, with the marks of one text and the room."""
        size = length - self.config.reserved_tokens - 1
        while (
            size > 0
            and size + 2 * self.count_spans(size)[1] + 1 + self.config.reserved_tokens
            > length
        ):
            size -= 1
        if size < 2:
            raise ConfigError(
                f"a row of {length} tokens has none left beside marks and the"
                f" {self.config.reserved_tokens} of SpanCorruption.reserved_tokens: make rows longer."
            )
        return size

    def count_spans(self, size: int) -> tuple[int, int]:
        """Of a text of so many tokens: how many are taken out, in how many spans."""
        taken = min(max(round(size * self.config.noise_density), 1), size - 1)
        spans = max(round(taken / self.config.mean_span_length), 1)
        return taken, min(spans, taken, size - taken, len(self.sentinels) - 1)

    def transform(self, text: WeightedTokens, key: RandomKey) -> WeightedTokens:
        size = len(text.tokens)
        if size < 2:
            return text
        taken, spans = self.count_spans(size)
        out, stays = (
            random_partition(taken, spans, key, 0),
            random_partition(size - taken, spans, key, 1),
        )
        turns = np.stack([stays, out], axis=1).reshape(-1)
        is_out = np.repeat(np.arange(2 * spans) % 2 == 1, turns)
        weight = np.float32(self.config.loss_on == "all")
        numbers = np.array(self.sentinels[:spans], np.int32)
        kept = WeightedTokens(
            np.insert(text.tokens[~is_out], stays.cumsum(), numbers),
            np.insert(text.weights[~is_out], stays.cumsum(), 1) * weight,
        )
        told = WeightedTokens(
            np.insert(text.tokens[is_out], out.cumsum() - out, numbers),
            np.insert(text.weights[is_out], out.cumsum() - out, 1),
        )
        return concat(kept, told, make_sentinel(self.sentinels[spans], 1.0))

    @property
    def fingerprint(self) -> Mapping[str, str]:
        how = self.config
        said = f"{how.noise_density} {how.mean_span_length} {self.sentinels} {how.reserved_tokens} {how.loss_on}"
        return {**self.source.fingerprint, "corrupted": said}


def random_partition(
    total: int, parts: int, at: RandomKey, purpose: int
) -> Int64[np.ndarray, " _"]:
    """So many lengths of at least 1 with that sum, every way to part it as likely."""
    drawn = hash_u64(*at, CORRUPTION_STREAM, purpose, np.arange(1, total))
    cuts = np.sort(drawn.argsort()[: parts - 1]) + 1
    return np.diff(cuts, prepend=0, append=total)
