"""Fill-in-the-middle (FIM) and span corruption."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int64

from lmx.config.registry import (
    Fraction,
    NonNegative,
    OpenFraction,
    at_least,
    check_fields,
    configurable,
)
from lmx.data.sampling.transform import WEIGHTED_TOKEN, DocumentTransform, RandomKey
from lmx.data.stateless_random import hash_u64, randint

FIM_STREAM = 7  # separates its random numbers from those of SpanCorruption
CORRUPTION_STREAM = 8  # separates its random numbers from those of FillInTheMiddle


@configurable
@dataclass(frozen=True, kw_only=True)
class FillInTheMiddle(DocumentTransform):
    """Splits some documents in three and moves the middle to the end.

    The result is `prefix` P `suffix` S `middle` M (PSM), or `prefix` `suffix` S
    `middle` P M (SPM, the variant of the paper that shares its sentinels with PSM).
    Both cuts are uniform over the borders between tokens. If packing has split a
    document, each part is transformed separately, or not at all. Bavarian et al. 2022,
    arXiv:2207.14255, section 3.

    Attributes:
        rate: fraction of documents that are transformed.
        spm_rate: fraction of those that are in SPM order.
        sentinels: the tokens `prefix`, `suffix` and `middle`, by name or number; None:
            three tokens that are added to the vocabulary.
        reserved_tokens: tokens per row reserved for sentinels, three per document; a
            document that finds none left is not transformed.
        loss_on: whether the loss covers the whole document or only the middle.
    """

    rate: Fraction[float] = 0.5
    spm_rate: Fraction[float] = 0.5
    sentinels: tuple[str | int, str | int, str | int] | None = None
    reserved_tokens: Annotated[int, at_least(3)] = 48
    loss_on: Literal["all", "middle"] = "all"

    @property
    def sentinel_names(self) -> tuple[str | int | None, ...]:
        return self.sentinels or (None, None, None)

    def source_length(self, length: int) -> int:
        return length - self.reserved_tokens

    def transform(
        self, document: np.ndarray, key: RandomKey, sentinels: tuple[int, ...]
    ) -> np.ndarray:
        drawn = hash_u64(*key, FIM_STREAM, np.arange(2)).astype(np.float64) / 2.0**64
        if drawn[0] >= self.rate:
            return document
        cuts = randint(len(document) + 1, *key, FIM_STREAM, np.arange(2, 4))
        before, middle, after = np.split(document, np.sort(cuts))
        pre, suf, mid = np.array([[(token, 1)] for token in sentinels], WEIGHTED_TOKEN)
        psm = [pre, before, suf, after, mid]
        spm = [pre, suf, after, mid, before]
        context = np.concatenate(spm if drawn[1] < self.spm_rate else psm)
        context["weight"] *= np.float32(self.loss_on == "all")
        return np.concatenate([context, middle])


@configurable
@dataclass(frozen=True, kw_only=True)
class SpanCorruption(DocumentTransform):
    """Replaces spans by sentinels and appends them, each after its sentinel.

    A B C D E becomes A 0 C 1 E 0 B 1 D 2. The lengths of the spans and of the text
    between them are random with a fixed sum. A mixture of several noise densities and
    span lengths gives UL2. Raffel et al. 2020, arXiv:1910.10683, section 3.1.4; as one
    sequence for a decoder: Tay et al. 2022, arXiv:2205.05131, section 3.

    Attributes:
        noise_density: fraction of tokens in spans.
        mean_span_length: tokens.
        sentinels: how many tokens are added to the vocabulary as sentinels; or existing
            tokens, by name or number. A document has fewer spans than that.
        reserved_tokens: tokens per row reserved for sentinels, beyond those that a
            document of the full row needs; a document that finds none left is not
            transformed.
        loss_on: whether the loss covers the whole document or only the spans.
    """

    noise_density: OpenFraction[float] = 0.15
    mean_span_length: Annotated[float, at_least(1)] = 3.0
    sentinels: int | tuple[str | int, ...] = 100
    reserved_tokens: NonNegative[int] = 16
    loss_on: Literal["all", "spans"] = "spans"

    def __post_init__(self):
        is_valid = len(self.sentinel_names) >= 2
        check_fields(self, sentinels=(is_valid, "at least 2 tokens"))

    @property
    def sentinel_names(self) -> tuple[str | int | None, ...]:
        if isinstance(self.sentinels, int):
            return (None,) * self.sentinels
        return self.sentinels

    def source_length(self, length: int) -> int:
        """The longest document that fits once transformed, without the reserve."""
        available = length - self.reserved_tokens - 1
        sizes = range(available, 1, -1)
        fitting = (n for n in sizes if n + 2 * self.count_spans(n)[1] <= available)
        return next(fitting, 0)

    def count_spans(self, size: int) -> tuple[int, int]:
        """Counts the tokens in spans, and the spans, of a document of `size` tokens."""
        tokens = min(max(round(size * self.noise_density), 1), size - 1)
        spans = max(round(tokens / self.mean_span_length), 1)
        return tokens, min(spans, tokens, size - tokens, len(self.sentinel_names) - 1)

    def transform(
        self, document: np.ndarray, key: RandomKey, sentinels: tuple[int, ...]
    ) -> np.ndarray:
        size = len(document)
        if size < 2:
            return document
        tokens, spans = self.count_spans(size)
        noise = random_partition(tokens, spans, key, 0)
        text = random_partition(size - tokens, spans, key, 1)
        lengths = np.stack([text, noise], axis=1).reshape(-1)
        is_noise = np.repeat(np.arange(2 * spans) % 2 == 1, lengths)
        separators = np.array(
            [(token, 1) for token in sentinels[: spans + 1]], WEIGHTED_TOKEN
        )
        rest = np.insert(document[~is_noise], text.cumsum(), separators[:-1])
        rest["weight"] *= np.float32(self.loss_on == "all")
        starts = noise.cumsum() - noise
        removed = np.insert(document[is_noise], starts, separators[:-1])
        return np.concatenate([rest, removed, separators[-1:]])


def random_partition(
    total: int, parts: int, key: RandomKey, stream: int
) -> Int64[np.ndarray, " _"]:
    """Lengths of at least 1 with that total, uniform over all such partitions."""
    drawn = hash_u64(*key, CORRUPTION_STREAM, stream, np.arange(1, total))
    cuts = np.sort(drawn.argsort()[: parts - 1]) + 1
    return np.diff(cuts, prepend=0, append=total)
