"""Fill-in-the-middle (FIM) data transform.

Bavarian et al. 2022, arXiv:2207.14255.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lmx.config.registry import ConfigError, configurable
from lmx.data.sampling.transform import (
    WEIGHTED_TOKEN,
    DocumentTransform,
    RandomKey,
)
from lmx.data.stateless_random import hash_u64, randint

FIM_STREAM = 7  # separates its random numbers from those of SpanCorruption


@configurable
@dataclass(frozen=True, kw_only=True)
class FillInTheMiddle(DocumentTransform):
    """Splits some documents in three and moves the middle to the end.

    The result is `prefix` P `suffix` S `middle` M (PSM), or `prefix` `suffix` S
    `middle` P M (SPM, the variant of the paper that shares its sentinels with PSM).
    Both cuts are uniform over the borders between tokens (section 3). If packing has
    split a document, each part is transformed separately, or not at all.

    Attributes:
        rate: fraction of documents that are transformed.
        spm_rate: fraction of those that are in SPM order.
        sentinels: the tokens `prefix`, `suffix` and `middle`, by name or number; None:
            three tokens that are added to the vocabulary.
        reserved_tokens: tokens per row reserved for sentinels, three per document; a
            document that finds none left is not transformed.
        loss_on: whether the loss covers the whole document or only the middle.
    """

    rate: float = 0.5
    spm_rate: float = 0.5
    sentinels: tuple[str | int, str | int, str | int] | None = None
    reserved_tokens: int = 48
    loss_on: Literal["all", "middle"] = "all"

    def __post_init__(self):
        for name in ("rate", "spm_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"FillInTheMiddle.{name} is {getattr(self, name)}: it must be a"
                    " fraction from 0 to 1."
                )
        if self.reserved_tokens < 3:
            raise ConfigError(
                f"FillInTheMiddle.reserved_tokens is {self.reserved_tokens}: it must be"
                " at least 3, since a document needs 3 sentinels."
            )

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
        _, middle, _ = np.split(document, np.sort(cuts))
        weight = np.float32(self.loss_on == "all")
        document = document.copy()
        document["weight"] *= weight
        before, _, after = np.split(document, np.sort(cuts))
        prefix, suffix, comes = np.array(
            [[(token, weight)] for token in sentinels], WEIGHTED_TOKEN
        )
        if drawn[1] < self.spm_rate:
            return np.concatenate([prefix, suffix, after, comes, before, middle])
        return np.concatenate([prefix, before, suffix, after, comes, middle])
