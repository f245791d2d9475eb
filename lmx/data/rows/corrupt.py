"""Documents with spans taken out and told after them, for a model to restore.

Raffel et al. 2020, arXiv:1910.10683, section 3.1.4, in one sequence as a decoder reads
it: Tay et al. 2022, arXiv:2205.05131, section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from lmx.config.names import ConfigError, configurable
from lmx.data.batches import Rows, Source
from lmx.data.keyed import hashed
from lmx.data.rows.rewrite import At, Rewritten, Text, joined, mark, marked

CORRUPT = 8  # the purpose, beside those of the other sources


@configurable
@dataclass(frozen=True, kw_only=True)
class Corrupted(Source):
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

    source: Source
    rate: float = 0.15
    span: float = 3.0
    marks: int | tuple[str | int, ...] = 100
    room: int = 16
    learned: Literal["all", "spans"] = "spans"

    def __post_init__(self):
        if not 0 < self.rate < 1 or not self.span >= 1 or self.room < 0:
            raise ConfigError(
                f"Corrupted has a rate of {self.rate}, spans of {self.span} and a room"
                f" of {self.room}: a fraction above 0 and below 1, at least 1, and at"
                " least 0."
            )
        count = self.marks if isinstance(self.marks, int) else len(self.marks)
        if count < 2:
            raise ConfigError(f"Corrupted.marks are {count}: one span needs two.")

    def open(self) -> "CorruptedRows":
        rows: Rows = self.source.open()
        named = None if isinstance(self.marks, int) else self.marks
        count = self.marks if isinstance(self.marks, int) else len(self.marks)
        return CorruptedRows(
            rows=rows,
            added=0 if named else count,
            how=self,
            marks=marked(rows, named, count, "Corrupted.marks"),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class CorruptedRows(Rewritten):
    """The rows of a source, its documents with spans taken out."""

    how: Corrupted
    marks: tuple[int, ...]

    def inner(self, length: int) -> int:
        """The most tokens that can be told, with the marks of one text and the room."""
        size = length - self.how.room - 1
        while size > 0 and size + 2 * self.spans(size)[1] + 1 + self.how.room > length:
            size -= 1
        if size < 2:
            raise ConfigError(
                f"a row of {length} tokens has none left beside marks and the"
                f" {self.how.room} of Corrupted.room: make rows longer."
            )
        return size

    def spans(self, size: int) -> tuple[int, int]:
        """Of a text of so many tokens: how many are taken out, in how many spans."""
        taken = min(max(round(size * self.how.rate), 1), size - 1)
        spans = max(round(taken / self.how.span), 1)
        return taken, min(spans, taken, size - taken, len(self.marks) - 1)

    def told(self, text: Text, at: At) -> Text:
        size = len(text.tokens)
        if size < 2:
            return text
        taken, spans = self.spans(size)
        out, stays = parted(taken, spans, at, 0), parted(size - taken, spans, at, 1)
        turns = np.stack([stays, out], axis=1).reshape(-1)
        is_out = np.repeat(np.arange(2 * spans) % 2 == 1, turns)
        weight = np.float32(self.how.learned == "all")
        numbers = np.array(self.marks[:spans], np.int32)
        kept = Text(
            np.insert(text.tokens[~is_out], stays.cumsum(), numbers),
            np.insert(text.weights[~is_out], stays.cumsum(), 1) * weight,
        )
        told = Text(
            np.insert(text.tokens[is_out], out.cumsum() - out, numbers),
            np.insert(text.weights[is_out], out.cumsum() - out, 1),
        )
        return joined(kept, told, mark(self.marks[spans], 1.0))

    @property
    def fingerprint(self) -> Mapping[str, str]:
        how = self.how
        said = f"{how.rate} {how.span} {self.marks} {how.room} {how.learned}"
        return {**self.rows.fingerprint, "corrupted": said}


def parted(total: int, parts: int, at: At, purpose: int) -> Int64[np.ndarray, " _"]:
    """So many lengths of at least 1 with that sum, every way to part it as likely."""
    drawn = hashed(*at, CORRUPT, purpose, np.arange(1, total))
    cuts = np.sort(drawn.argsort()[: parts - 1]) + 1
    return np.diff(cuts, prepend=0, append=total)
