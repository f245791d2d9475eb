"""Pairs of a key and its value: a value can be told once its key has come before."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int64

from lmx.config.registry import configurable
from lmx.data.stateless_random import RandomStream, randint
from lmx.data.synthetic.base import SyntheticDataset


@configurable
@dataclass(frozen=True, kw_only=True)
class AssociativeRecall(SyntheticDataset):
    """Keys, each followed by the value that it has in this row.

    A value is predicted where its key stood earlier in the row, and then it is certain.
    Keys are the tokens below `keys`, values the `values` tokens above them. Arora et
    al. 2023, arXiv:2312.04927, section 3.
    """

    keys: int
    values: int

    entropy: ClassVar[float] = 0.0

    def __post_init__(self):
        self.require_at_least(keys=1, values=1, batch_size=1, sequence_length=3)

    @property
    def vocab(self) -> int:
        return self.keys + self.values

    def generate(
        self, seed: int, step: int, row: Int64[np.ndarray, "B 1"]
    ) -> tuple[Int64[np.ndarray, "B _"], Bool[np.ndarray, "#B _"]]:
        pair = np.arange(self.sequence_length // 2 + 1)
        key = randint(self.keys, seed, RandomStream.RECALL, step, row, pair, 0)
        value = randint(self.values, seed, RandomStream.RECALL, step, row, key, 1)
        first = (key[:, :, None] == key[:, None, :]).argmax(axis=2)
        told = np.stack([np.zeros(first.shape, bool), first < pair], axis=2)
        tokens = np.stack([key, self.keys + value], axis=2)
        return tokens.reshape(len(row), -1), told.reshape(len(row), -1)
