"""Documents told with their middle last, so that a model learns to fill in.

Bavarian et al. 2022, arXiv:2207.14255.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lmx.config.names import ConfigError, configurable
from lmx.data.batches import Rows, Source
from lmx.data.keyed import below, hashed
from lmx.data.rows.rewrite import At, Rewritten, Text, joined, mark, marked

INFILL = 7  # the purpose, beside those of the other sources
MARKS = ("prefix", "suffix", "middle")


@configurable
@dataclass(frozen=True, kw_only=True)
class Infilled(Source):
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

    source: Source
    rate: float = 0.5
    spm: float = 0.5
    marks: tuple[str | int, str | int, str | int] | None = None
    room: int = 48
    learned: Literal["all", "middle"] = "all"

    def __post_init__(self):
        for name in ("rate", "spm"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"Infilled.{name} is {getattr(self, name)}: a fraction, 0 to 1."
                )
        if self.room < len(MARKS):
            raise ConfigError(
                f"Infilled.room is {self.room}: a document needs {len(MARKS)} tokens."
            )

    def open(self) -> "InfilledRows":
        rows: Rows = self.source.open()
        return InfilledRows(
            rows=rows,
            added=0 if self.marks else len(MARKS),
            how=self,
            marks=marked(rows, self.marks, len(MARKS), "Infilled.marks"),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class InfilledRows(Rewritten):
    """The rows of a source, some documents told with their middle last."""

    how: Infilled
    marks: tuple[int, ...]

    def inner(self, length: int) -> int:
        if length <= self.how.room:
            raise ConfigError(
                f"a row of {length} tokens has none left beside the {self.how.room} of"
                " Infilled.room: make it smaller."
            )
        return length - self.how.room

    def told(self, text: Text, at: At) -> Text:
        drawn = hashed(*at, INFILL, np.arange(2)).astype(np.float64) / 2.0**64
        if drawn[0] >= self.how.rate:
            return text
        size, weight = len(text.tokens), float(self.how.learned == "all")
        low, high = sorted(below(size + 1, *at, INFILL, np.arange(2, 4)).tolist())
        middle = text.part(low, high)
        text = Text(text.tokens, text.weights * np.float32(weight))
        before, after = text.part(0, low), text.part(high, size)
        prefix, suffix, comes = (mark(token, weight) for token in self.marks)
        if drawn[1] < self.how.spm:
            return joined(prefix, suffix, after, comes, before, middle)
        return joined(prefix, before, suffix, after, comes, middle)

    @property
    def fingerprint(self) -> Mapping[str, str]:
        how = self.how
        said = f"{how.rate} {how.spm} {self.marks} {how.room} {how.learned}"
        return {**self.rows.fingerprint, "infilled": said}
