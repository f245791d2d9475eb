"""Weights that anyone can make again from their names and shapes alone."""

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

Tensors = dict[str, np.ndarray]


def weight(name: str, shape: Sequence[int]) -> np.ndarray:
    """One tensor in float32: gains spread about 1, biases about 0, none of them zero.

    NumPy promises the stream of PCG64 for all its versions, that of its normals not:
    so these are uniform.
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
    """The tensors of a model, by the names that its file gives them."""
    return {name: weight(name, shape) for name, shape in shapes.items()}


def rows(seed: str, shape: Sequence[int], vocab: int) -> np.ndarray:
    """Token ids, the same ones for the same words."""
    stream = np.random.PCG64(zlib.crc32(seed.encode()))
    bits = stream.random_raw(math.prod(shape))
    return (bits % np.uint64(vocab)).astype(np.int32).reshape(tuple(shape))
