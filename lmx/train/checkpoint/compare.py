"""Two saved states side by side: which tensors differ, and how far."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lmx.train.checkpoint.reader import CheckpointReader, iter_chunks


class TensorDiff(NamedTuple):
    """How one tensor of two states differs.

    Attributes:
        what: "equal" to the bit, "differs", "only in A", "only in B", or how dtypes or
            shapes differ.
        norm: of the tensor in A.
        distance: the norm of B minus A; None where there is no such thing.
    """

    tensor: str
    status: str
    norm: float | None = None
    distance: float | None = None

    @property
    def relative(self) -> float | None:
        """The distance over the norm; None where there is none."""
        if self.distance is None or not self.norm:
            return None
        return self.distance / self.norm


def diff_checkpoints(a: CheckpointReader, b: CheckpointReader) -> Iterator[TensorDiff]:
    """Each tensor of either state, in the order of their names.

    Equal digests are taken for equal bits; other tensors are read, one chunk at a time.
    """
    left, right = a.read_metadata()["digests"], b.read_metadata()["digests"]
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
    """A tensor that differs, in numbers of float64."""
    left, right = a.open_tensor(name), b.open_tensor(name)
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        shapes = f"{left.dtype.name} {left.shape}, {right.dtype.name} {right.shape}"
        return TensorDiff(name, shapes)
    norm = distance = 0.0
    for index in iter_chunks(left):
        here = a.read_part(name, left, index).astype(np.float64)
        there = b.read_part(name, right, index).astype(np.float64)
        norm += float(np.square(here).sum())
        distance += float(np.square(there - here).sum())
    return TensorDiff(name, "differs", math.sqrt(norm), math.sqrt(distance))
