"""Random keys as a function of (seed, purpose, step): nothing to store or lose."""

import zlib

import jax
from jaxtyping import Array, Int, Key


def key(seed: int, purpose: str) -> Key[Array, ""]:
    """The key of one use of randomness, independent of every other purpose's."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def fold(
    seed: int, step: int | Int[Array, ""], purpose: str, rows: int
) -> Key[Array, "B"]:
    """One key for each row of the batch of that step.

    Keys of rows rather than of batches: a batch in pieces, or on many devices, draws
    what the whole would have drawn.
    """
    at_step = jax.random.fold_in(key(seed, purpose), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(at_step, jax.numpy.arange(rows))
