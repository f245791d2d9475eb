"""Token positions and segments, and the attention mask made from them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class TokenInfo(NamedTuple):
    """Position, order and document of each token."""

    positions: Int[Array, "B T"]  # restart at 0 with each document
    index: Int[Array, "B T"]  # order in the row: no token attends to a higher index
    segments: Int[Array, "B T"]  # document number, 0 at padding

    @property
    def unpadded(self) -> Bool[Array, "B T"]:
        """False at padding."""
        return self.segments > 0


def describe_tokens(
    positions: Int[Array, "B T"], segments: Int[Array, "B T"]
) -> TokenInfo:
    """`TokenInfo` of tokens that are stored in order."""
    index_T = jnp.arange(segments.shape[1], dtype=jnp.int32)
    return TokenInfo(
        positions, jnp.broadcast_to(index_T[None], segments.shape), segments
    )


def positions_from_segments(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Number of tokens since the start of the document."""
    index_T = jnp.arange(segments.shape[1])
    starts_BT = jnp.diff(segments, axis=1, prepend=segments[:, :1]) != 0
    return index_T[None] - jax.lax.cummax(
        jnp.where(starts_BT, index_T[None], 0), axis=1
    )


def make_attention_mask(
    query: TokenInfo, key: TokenInfo, window: int | None = None
) -> Bool[Array, "B T S"]:
    """True where query t sees key s: same document, at or before t, within `window`."""
    same_BTS = query.segments[:, :, None] == key.segments[:, None, :]
    distance_BTS = query.index[:, :, None] - key.index[:, None, :]
    mask_BTS = same_BTS & (distance_BTS >= 0)
    return mask_BTS if window is None else mask_BTS & (distance_BTS < window)
