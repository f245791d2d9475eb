"""Random keys as a function of seed, purpose and step, without state."""

import zlib

import jax
from jaxtyping import Array, Int, Key

from lmx.config.registry import Range, check_argument

SEEDS = Range("from -2^63 to 2^63 - 1", lambda x: -(2**63) <= x < 2**63)


def key(seed: int, purpose: str) -> Key[Array, ""]:
    """The key of one purpose, independent of those of other purposes."""
    rule = f"the seed is {seed}: it must be {SEEDS.text}."
    check_argument(SEEDS.contains(seed), rule)
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def fold(
    seed: int, step: int | Int[Array, ""], purpose: str, rows: int
) -> Key[Array, "B"]:
    """One key for each row of the batch of that step.

    Microbatches and shards of a batch thus draw the same numbers as the whole.
    """
    at_step = jax.random.fold_in(key(seed, purpose), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(at_step, jax.numpy.arange(rows))
