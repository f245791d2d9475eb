"""Weights that depend only on their names and shapes."""

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

Tensors = dict[str, np.ndarray]


def weight(name: str, shape: Sequence[int]) -> np.ndarray:
    """One tensor in float32: norm scales around 1, biases around 0, none of them 0.

    NumPy guarantees the stream of PCG64 across versions, not its normals: so these
    are uniform.
    """
    stream = np.random.PCG64(zlib.crc32(name.encode()))
    bits = np.atleast_1d(stream.random_raw(math.prod(shape)))
    unit = ((bits >> np.uint64(11)) * 2.0**-53 - 0.5) * math.sqrt(12)
    unit = unit.reshape(tuple(shape))
    if name.endswith(("bias", "sinks")):
        values = 0.3 * unit
    elif len(shape) == 1:
        values = 1 + 0.25 * unit
    else:
        values = 1.5 / math.sqrt(min(shape[-2:])) * unit
    return values.astype(np.float32)


def weights(shapes: Mapping[str, Sequence[int]]) -> Tensors:
    """The tensors of a model, by their names in the file."""
    return {name: weight(name, shape) for name, shape in shapes.items()}


def rows(seed: str, shape: Sequence[int], vocab: int) -> np.ndarray:
    """Token ids that depend only on `seed`."""
    stream = np.random.PCG64(zlib.crc32(seed.encode()))
    bits = stream.random_raw(math.prod(shape))
    return (bits % np.uint64(vocab)).astype(np.int32).reshape(tuple(shape))
