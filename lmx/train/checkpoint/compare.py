"""Compares two checkpoints: which tensors differ, and by how much."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lmx.train.checkpoint.reader import CheckpointReader, iter_chunks


class TensorDiff(NamedTuple):
    """The difference between one tensor in checkpoints A and B.

    Attributes:
        status: "equal" to the bit, "differs", "only in A", "only in B", or both dtypes
            and shapes.
        norm: norm of the tensor in A.
        distance: the norm of B - A; None if it is not defined.
    """

    tensor: str
    status: str
    norm: float | None = None
    distance: float | None = None

    @property
    def relative(self) -> float | None:
        """The distance over the norm; None if it is not defined."""
        if self.distance is None or not self.norm:
            return None
        return self.distance / self.norm


def diff_checkpoints(a: CheckpointReader, b: CheckpointReader) -> Iterator[TensorDiff]:
    """Each tensor of either checkpoint by name; equal digests are not read further."""
    left, right = (reader.read_metadata()["digests"] for reader in (a, b))
    for name in sorted({**left, **right}):
        if name not in right:
            yield TensorDiff(name, "only in A")
        elif name not in left:
            yield TensorDiff(name, "only in B")
        elif left[name] == right[name]:
            yield TensorDiff(name, "equal")
        else:
            yield _diff_tensor(name, a, b)


def _diff_tensor(name: str, a: CheckpointReader, b: CheckpointReader) -> TensorDiff:
    """The difference between two tensors, in float64."""
    left, right = a.open_tensor(name), b.open_tensor(name)
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        kinds = f"{left.dtype.name} {left.shape}, {right.dtype.name} {right.shape}"
        return TensorDiff(name, kinds)
    norm = distance = 0.0
    for index in iter_chunks(left):
        old = a.read_part(name, left, index).astype(np.float64)
        new = b.read_part(name, right, index).astype(np.float64)
        norm += float(np.square(old).sum())
        distance += float(np.square(new - old).sum())
    return TensorDiff(name, "differs", math.sqrt(norm), math.sqrt(distance))
