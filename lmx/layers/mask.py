"""Where tokens stand, and who may attend to whom. Masks are True where one may."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class TokenInfo(NamedTuple):
    """Where each token of some rows stands."""

    positions: Int[Array, "B T"]  # restart at 0 with each document
    index: Int[Array, "B T"]  # grows along a row; tokens see none of a higher one
    segments: Int[Array, "B T"]  # the document, 0 at padding

    @property
    def unpadded(self) -> Bool[Array, "B T"]:
        """False at padding."""
        return self.segments > 0


def describe_tokens(
    positions: Int[Array, "B T"], segments: Int[Array, "B T"]
) -> TokenInfo:
    """The places of tokens in the order in which they are given."""
    order_T = jnp.arange(segments.shape[1], dtype=jnp.int32)
    order_BT = jnp.broadcast_to(order_T[None], segments.shape)
    return TokenInfo(positions, order_BT, segments)


def positions_from_segments(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Positions: tokens since the beginning of the document (`segments`)."""
    at_T = jnp.arange(segments.shape[1])
    begins_BT = jnp.diff(segments, axis=1, prepend=segments[:, :1]) != 0
    return at_T[None] - jax.lax.cummax(jnp.where(begins_BT, at_T[None], 0), axis=1)


def make_attention_mask(
    query: TokenInfo, key: TokenInfo, window: int | None = None
) -> Bool[Array, "B T S"]:
    """Query t sees key s of the same document, at or before it.

    With a window it sees that many tokens at most, itself among them.
    """
    same_BTS = query.segments[:, :, None] == key.segments[:, None, :]
    ahead_BTS = query.index[:, :, None] - key.index[:, None, :]
    seen_BTS = same_BTS & (ahead_BTS >= 0)
    return seen_BTS if window is None else seen_BTS & (ahead_BTS < window)
