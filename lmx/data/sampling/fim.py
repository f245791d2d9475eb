"""Documents told with their middle last, so that a model learns to fill in.

Bavarian et al. 2022, arXiv:2207.14255.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

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
from lmx.data.stateless_random import hash_u64, randint

FIM_STREAM = 7  # the purpose, beside those of the other sources
SENTINELS = ("prefix", "suffix", "middle")


@configurable
@dataclass(frozen=True, kw_only=True)
class FillInTheMiddle(DatasetConfig):
    """Another source, some of whose documents are cut in three and told with the middle
    last: `prefix` P `suffix` S `middle` M, or `prefix` `suffix` S `middle` P M.

    Both cuts fall between tokens, anywhere as likely (section 3). The second order is
    the paper's SPM, in the variant that shares its marks with the first. Where packing
    has split a document, its parts are each told so, or not. Rows hold fewer tokens of
    the source, by `room`, and none is lost.

    Attributes:
        rate: the fraction of documents.
        spm: the fraction of those that are told in the second order.
        marks: the tokens `prefix`, `suffix` and `middle`, by name or number; None:
            three further tokens, above all others.
        room: tokens of a row that are kept for marks, three a document; documents that
            find none left stay as they are.
        learned: whether all of such a document is to be predicted, or its middle only.
    """

    source: DatasetConfig
    rate: float = 0.5
    spm_rate: float = 0.5
    sentinels: tuple[str | int, str | int, str | int] | None = None
    reserved_tokens: int = 48
    loss_on: Literal["all", "middle"] = "all"

    def __post_init__(self):
        for name in ("rate", "spm_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"FillInTheMiddle.{name} is {getattr(self, name)}: a fraction, 0 to 1."
                )
        if self.reserved_tokens < len(SENTINELS):
            raise ConfigError(
                f"FillInTheMiddle.reserved_tokens is {self.reserved_tokens}: a document needs {len(SENTINELS)} tokens."
            )

    def open(self) -> "FillInTheMiddleRows":
        rows: Dataset = self.source.open()
        return FillInTheMiddleRows(
            source=rows,
            added_tokens=0 if self.sentinels else len(SENTINELS),
            config=self,
            sentinels=resolve_sentinels(
                rows, self.sentinels, len(SENTINELS), "FillInTheMiddle.sentinels"
            ),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class FillInTheMiddleRows(DocumentTransform):
    """The rows of a source, some documents told with their middle last."""

    config: FillInTheMiddle
    sentinels: tuple[int, ...]

    def source_length(self, length: int) -> int:
        if length <= self.config.reserved_tokens:
            raise ConfigError(
                f"a row of {length} tokens has none left beside the {self.config.reserved_tokens} of"
                " FillInTheMiddle.reserved_tokens: make it smaller."
            )
        return length - self.config.reserved_tokens

    def transform(self, text: WeightedTokens, key: RandomKey) -> WeightedTokens:
        drawn = hash_u64(*key, FIM_STREAM, np.arange(2)).astype(np.float64) / 2.0**64
        if drawn[0] >= self.config.rate:
            return text
        size, weight = len(text.tokens), float(self.config.loss_on == "all")
        low, high = sorted(
            randint(size + 1, *key, FIM_STREAM, np.arange(2, 4)).tolist()
        )
        middle = text.crop(low, high)
        text = WeightedTokens(text.tokens, text.weights * np.float32(weight))
        before, after = text.crop(0, low), text.crop(high, size)
        prefix, suffix, comes = (
            make_sentinel(token, weight) for token in self.sentinels
        )
        if drawn[1] < self.config.spm_rate:
            return concat(prefix, suffix, after, comes, before, middle)
        return concat(prefix, before, suffix, after, comes, middle)

    @property
    def fingerprint(self) -> Mapping[str, str]:
        how = self.config
        said = f"{how.rate} {how.spm_rate} {self.sentinels} {how.reserved_tokens} {how.loss_on}"
        return {**self.source.fingerprint, "infilled": said}
