"""Sums over tokens, computed over chunks of rows to save memory."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from lmx.config.registry import ConfigError

Sums = TypeVar("Sums")


def sum_over_chunks(fn: Callable[..., Sums], chunk: int | None, *arrays: Any) -> Sums:
    """Sums `fn` over chunks of arrays whose dimensions start with B and T.

    A chunk has `chunk` tokens of every row. The backward pass recomputes it. Chunk i
    of n has tokens i, i + n, ..., so that each device keeps the tokens it has. None
    calls `fn` once.
    """
    if chunk is None:
        return fn(*arrays)
    T = jax.tree.leaves(arrays)[0].shape[1]
    if chunk < 1 or T % chunk:
        raise ConfigError(
            f"rows of {T} tokens cannot be split into chunks of {chunk}:"
            " NextToken.chunk must divide the length of a row."
        )
    chunks = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(len(x), chunk, -1, *x.shape[2:]), 2, 0), arrays
    )
    remat = jax.checkpoint(fn, prevent_cse=False)  # a loop prevents it anyway
    sums = jax.lax.map(lambda chunk: remat(*chunk), chunks)
    return jax.tree.map(lambda x: x.sum(axis=0), sums)
