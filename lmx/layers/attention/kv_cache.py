"""What a decoder remembers of the tokens it has read."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from lmx.layers.attention.inputs import CacheView, write_slots
from lmx.layers.mask import TokenInfo


class KVCache(NamedTuple):
    """What every layer remembers, and where the tokens stand; rows are independent.

    A row's tokens stand in slots 0, 1, ... without the padding between them.
    """

    layers: PyTree  # one Past for each block of each cycle, leading dimension L
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]  # 0 where nothing was read
    lengths: Int[Array, "B"]  # tokens read so far
    final_length: Int[Array, ""]  # tokens that the longest row will have come to

    def advance(
        self, positions: Int[Array, "B T"], segments: Int[Array, "B T"]
    ) -> tuple[TokenInfo, CacheView]:
        """Where more tokens stand, and what the layers are told of all of them."""
        live_BT = segments > 0
        order_BT = self.lengths[:, None] + jnp.cumsum(live_BT, axis=1) - 1
        order_BT = jnp.where(live_BT, order_BT, -1).astype(jnp.int32)
        after_B = self.lengths + live_BT.sum(axis=1, dtype=jnp.int32)
        read = CacheView(
            write_slots(self.positions, positions, order_BT, after_B),
            write_slots(self.segments, segments, order_BT, after_B),
            self.lengths,
            after_B,
        )
        return TokenInfo(positions, order_BT, segments), read

    def select(self, index: Int[Array, "M"]) -> "KVCache":
        """The cache of these rows, in this order, any of them more than once."""
        return KVCache(
            jax.tree.map(lambda x: x[:, index], self.layers),
            self.positions[index],
            self.segments[index],
            self.lengths[index],
            self.final_length,
        )
