"""Where documents begin and who may attend to whom. Masks are True where one may."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def restarting(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Positions: tokens since the beginning of the document (`segments`)."""
    at_T = jnp.arange(segments.shape[1])
    begins_BT = jnp.diff(segments, axis=1, prepend=segments[:, :1]) != 0
    return at_T[None] - jax.lax.cummax(jnp.where(begins_BT, at_T[None], 0), axis=1)


def causal(
    segments: Int[Array, "B T"],
    key_segments: Int[Array, "B S"],
    first: int | Int[Array, ""] = 0,
) -> Bool[Array, "B T S"]:
    """Query t sees key s of the same document (`segments`), at or before it.

    Keys stand in the order in which they came; query 0 is key number `first`.
    """
    same_BTS = segments[:, :, None] == key_segments[:, None, :]
    query_T1 = first + jnp.arange(segments.shape[1])[:, None]
    key_1S = jnp.arange(key_segments.shape[1])[None]
    return same_BTS & (key_1S <= query_T1)[None]
