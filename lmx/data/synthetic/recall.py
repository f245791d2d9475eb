"""Pairs of a key and its value: a value can be told once its key has come before."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int64

from lmx.config.names import configurable
from lmx.data.keyed import Purpose, below
from lmx.data.synthetic.made import Made


@configurable
@dataclass(frozen=True, kw_only=True)
class Recall(Made):
    """Keys, each followed by the value that it has in this row.

    A value is predicted where its key stood earlier in the row, and then it is certain.
    Keys are the tokens below `keys`, values the `values` tokens above them. Arora et
    al. 2023, arXiv:2312.04927, section 3.
    """

    keys: int
    values: int

    entropy: ClassVar[float] = 0.0

    def __post_init__(self):
        self.check(keys=1, values=1, batch=1, length=3)

    @property
    def vocab(self) -> int:
        return self.keys + self.values

    def said(
        self, seed: int, step: int, row: Int64[np.ndarray, "B 1"]
    ) -> tuple[Int64[np.ndarray, "B _"], Bool[np.ndarray, "#B _"]]:
        pair = np.arange(self.length // 2 + 1)
        key = below(self.keys, seed, Purpose.RECALL, step, row, pair, 0)
        value = below(self.values, seed, Purpose.RECALL, step, row, key, 1)
        first = (key[:, :, None] == key[:, None, :]).argmax(axis=2)
        told = np.stack([np.zeros(first.shape, bool), first < pair], axis=2)
        tokens = np.stack([key, self.keys + value], axis=2)
        return tokens.reshape(len(row), -1), told.reshape(len(row), -1)
