"""Sums over the tokens of rows, taken of a few tokens at a time."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from lmx.config.registry import ConfigError

Sums = TypeVar("Sums")


def sum_over_chunks(fn: Callable[..., Sums], chunk: int | None, *arrays: Any) -> Sums:
    """The sums that `take` finds in arrays of dimensions B, T and others.

    They are of `chunk` tokens of every row at once, and what is between is neither kept
    for the backward pass. Part i of n has tokens i, i + n, ..., so that each device
    keeps the tokens it has. None takes all as they are.
    """
    if chunk is None:
        return fn(*arrays)
    T = jax.tree.leaves(arrays)[0].shape[1]
    if chunk < 1 or T % chunk:
        raise ConfigError(
            f"rows of {T} tokens cannot be taken {chunk} at a time: NextToken.chunk"
            " must divide the length of a row."
        )
    parts = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(len(x), chunk, -1, *x.shape[2:]), 2, 0), arrays
    )
    again = jax.checkpoint(fn, prevent_cse=False)  # which a loop prevents anyway
    found = jax.lax.map(lambda part: again(*part), parts)
    return jax.tree.map(lambda x: x.sum(axis=0), found)
