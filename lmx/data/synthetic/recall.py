"""Associative recall: pairs of a key and a value that repeat within a row."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lmx.config.registry import configurable
from lmx.data.stateless_random import RandomStream, randint
from lmx.data.synthetic.base import Column, Generated, SyntheticDataset


@configurable
@dataclass(frozen=True, kw_only=True)
class AssociativeRecall(SyntheticDataset):
    """Keys, each followed by its value, which is constant within a row.

    A value is a target if its key occurred earlier in the row, and is then certain.
    Keys are the tokens below `keys`, values the next `values` tokens. Arora et al.
    2023, arXiv:2312.04927, section 3.
    """

    keys: int
    values: int

    entropy: ClassVar[float] = 0.0

    def __post_init__(self):
        self.require_at_least(keys=1, values=1, batch_size=1, sequence_length=3)

    @property
    def vocab(self) -> int:
        return self.keys + self.values

    def generate(self, seed: int, step: Column, row: Column) -> Generated:
        pair = np.arange(self.sequence_length // 2 + 1)
        key = randint(self.keys, seed, RandomStream.RECALL, step, row, pair, 0)
        value = randint(self.values, seed, RandomStream.RECALL, step, row, key, 1)
        first = (key[:, :, None] == key[:, None, :]).argmax(axis=2)
        is_target = np.stack([np.zeros(first.shape, bool), first < pair], axis=2)
        tokens = np.stack([key, self.keys + value], axis=2)
        return tokens.reshape(len(row), -1), is_target.reshape(len(row), -1)
