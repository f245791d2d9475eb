"""Small made languages, for tests and for studies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lmx.config.names import ConfigError, configurable
from lmx.data.batches import Batch, Source
from lmx.data.keyed import below

ECHO = 3  # the purpose, beside those of `order`


@configurable
@dataclass(frozen=True, kw_only=True)
class Echo(Source):
    """Random tokens, said twice: only the second saying can be, and is, predicted.

    The task of induction heads. Olsson et al. 2022, arXiv:2209.11895.
    """

    vocab: int
    batch: int  # B, rows over all devices
    length: int  # T, tokens

    steps: ClassVar[None] = None
    tokenizer: ClassVar[None] = None
    token_bytes: ClassVar[None] = None

    def __post_init__(self):
        for name in ("vocab", "batch", "length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Echo.{name} is {getattr(self, name)}: at least 1.")

    def open(self) -> "Echo":
        """Itself: there is nothing to read."""
        return self

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return {"source": f"{self}"}

    def batch_at(self, seed: int, step: int, rows: slice = slice(None)) -> Batch:
        """Those rows of the batch of that step: a pure function of its arguments."""
        row = np.arange(self.batch)[rows][:, None]
        half = (self.length + 2) // 2
        once = below(self.vocab, seed, ECHO, step, row, np.arange(half))
        twice = np.concatenate([once, once], axis=1).astype(np.int32)
        index = np.arange(self.length, dtype=np.int32)
        shape = (len(row), self.length)
        return Batch(
            tokens=twice[:, : self.length],
            targets=twice[:, 1 : self.length + 1],
            weights=np.tile((index >= half - 1).astype(np.float32), (len(row), 1)),
            positions=np.tile(index, (len(row), 1)),
            segments=np.ones(shape, np.int32),
        )
