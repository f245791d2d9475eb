"""A batch: the input of one training step."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32


class Batch(NamedTuple):
    """Packed rows of tokens. Documents may share a row."""

    tokens: Int32[np.ndarray, "B T"]
    targets: Int32[np.ndarray, "B T"]  # the token that follows tokens[b, t]
    weights: Float32[np.ndarray, "B T"]  # 0 where the target has no loss
    positions: Int32[np.ndarray, "B T"]  # restart at 0 with each document and row
    segments: Int32[np.ndarray, "B T"]  # which document of the row, 0 for padding
