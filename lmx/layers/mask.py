"""Who may attend to whom. Masks are boolean, True where attention is allowed."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


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
    return same_BTS & (jnp.arange(key_segments.shape[1]) <= query_T1)[None]
