"""A batch: the input of one training step, and how a dataset declares its own kind.

A batch is a NamedTuple of arrays. Each field is annotated with its dtype and its
dimensions, as those of `Batch` are: the first is B, T is the sequence, and others have
any names or are numbers.
"""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple, get_type_hints

import numpy as np
from jaxtyping import Float32, Int32

from lmx.config.registry import require

AnyBatch = Any  # a NamedTuple such as `Batch`


class Batch(NamedTuple):
    """Packed rows of tokens. Documents may share a row."""

    tokens: Int32[np.ndarray, "B T"]
    targets: Int32[np.ndarray, "B T"]  # the token that follows tokens[b, t]
    weights: Float32[np.ndarray, "B T"]  # 0 where the target has no loss
    positions: Int32[np.ndarray, "B T"]  # restart at 0 with each document and row
    segments: Int32[np.ndarray, "B T"]  # which document of the row, 0 for padding


class BatchSpec(NamedTuple):
    """What the batches of a dataset are.

    Attributes:
        kind: their NamedTuple class.
        sizes: of the dimensions that it names, but for B and T.
    """

    kind: type = Batch
    sizes: Mapping[str, int] = MappingProxyType({})


class BatchField(NamedTuple):
    """One array of a batch: the names of its dimensions, and its dtype."""

    dims: tuple[str, ...]
    dtype: str


@cache
def list_fields(kind: type) -> dict[str, BatchField]:
    """The arrays of a batch of that class, by the annotations of its fields."""
    fields = {}
    for name, hint in get_type_hints(kind).items():
        dims: tuple[str, ...] = tuple(getattr(hint, "dim_str", "").split())
        dtypes: list[str] = [*getattr(hint, "dtypes", ())]
        require(
            dims[:1] == ("B",) and len(dtypes) == 1,
            f"{kind.__name__}.{name} must be annotated with one dtype, and with its"
            ' dimensions from B on, as in Float32[np.ndarray, "B T"].',
        )
        fields[name] = BatchField(dims, dtypes[0])
    return fields


def count_rows(batch: AnyBatch) -> int:
    """B, the rows of a batch."""
    return batch[0].shape[0]
