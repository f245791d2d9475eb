"""The KV cache: its state, its update, and where cached tokens are.

Each row's tokens are stored without padding, token i in slot `i % capacity`. So rows
may have different lengths, padded on either side, and a cache smaller than the text is
a ring buffer of the newest tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Shaped

from lmx.layers.mask import TokenInfo


class CacheView(NamedTuple):
    """All tokens in a cache, including those of the current call."""

    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]  # 0 in empty slots
    old_lengths: Int[Array, "B"]  # tokens per row before this call
    new_lengths: Int[Array, "B"]  # and after it

    @property
    def capacity(self) -> int:
        """Maximum number of tokens per row."""
        return self.segments.shape[1]

    def describe_slots(self, lengths: Int[Array, "B"], capacity: int) -> TokenInfo:
        """The tokens in `capacity` slots of rows that have these `lengths`."""
        newest_B1 = lengths[:, None] - 1
        slot_1S = jnp.arange(capacity)[None]
        index_BS = newest_B1 - (newest_B1 - slot_1S) % capacity
        filled_BS = (index_BS >= 0) & (lengths[:, None] > 0)
        source_BS = index_BS % self.capacity
        positions_BS, segments_BS = (
            jnp.take_along_axis(x, source_BS, axis=1)
            for x in (self.positions, self.segments)
        )
        # Segment -1: not even padding (segment 0) attends to an empty slot.
        return TokenInfo(positions_BS, index_BS, jnp.where(filled_BS, segments_BS, -1))


class KVCache(NamedTuple):
    """State of every layer, and the position and document of the cached tokens."""

    layers: PyTree  # a BlockCache for each kind of layer, leading dimension L
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]  # 0 in empty slots
    lengths: Int[Array, "B"]  # tokens per row so far
    final_length: Int[Array, ""]  # tokens of the longest row once it is complete

    def advance(
        self, positions: Int[Array, "B T"], segments: Int[Array, "B T"]
    ) -> tuple[TokenInfo, CacheView]:
        """New tokens, and the view of the cache after they are added."""
        unpadded_BT = segments > 0
        index_BT = self.lengths[:, None] + jnp.cumsum(unpadded_BT, axis=1) - 1
        index_BT = jnp.where(unpadded_BT, index_BT, -1).astype(jnp.int32)
        new_lengths_B = self.lengths + unpadded_BT.sum(axis=1, dtype=jnp.int32)
        view = CacheView(
            write_slots(self.positions, positions, index_BT, new_lengths_B),
            write_slots(self.segments, segments, index_BT, new_lengths_B),
            self.lengths,
            new_lengths_B,
        )
        return TokenInfo(positions, index_BT, segments), view

    def select(self, rows: Int[Array, "M"]) -> "KVCache":
        """The cache of these rows, in this order, possibly repeated."""
        return KVCache(
            jax.tree.map(lambda x: x[:, rows], self.layers),
            self.positions[rows],
            self.segments[rows],
            self.lengths[rows],
            self.final_length,
        )


def write_slots(
    cache: Shaped[Array, "B S *dims"],
    new: Shaped[Array, "B T *dims"],
    index: Int[Array, "B T"],
    new_lengths: Int[Array, "B"],
) -> Shaped[Array, "B S *dims"]:
    """`cache` with the newest of `new` in their slots; negative `index` is padding.

    Rows have `new_lengths` tokens afterwards.
    """
    capacity = cache.shape[1]
    written_BT = (index >= 0) & (index >= new_lengths[:, None] - capacity)
    slot_BT = jnp.where(written_BT, index % capacity, capacity)  # dropped if capacity
    row_B1 = jnp.arange(cache.shape[0])[:, None]
    return cache.at[row_B1, slot_BT].set(new.astype(cache.dtype), mode="drop")


def update_cache(
    cache: PyTree, new: PyTree, tokens: TokenInfo, view: CacheView | None
) -> tuple[PyTree, TokenInfo, PyTree]:
    """Returns what can be attended to, its tokens, and the updated cache of a layer.

    `new` has arrays of dimensions B, T, ..., one vector for each of `tokens`.
    """
    if cache is None or view is None:
        return new, tokens, None
    updated = jax.tree.map(
        lambda old, x: write_slots(old, x, tokens.index, view.new_lengths), cache, new
    )
    length, capacity = tokens.segments.shape[1], jax.tree.leaves(cache)[0].shape[1]
    if capacity == view.capacity or length == 1:
        readable = jax.tree.map(lambda x, y: x.astype(y.dtype), updated, new)
        return readable, view.describe_slots(view.new_lengths, capacity), updated
    # The first new tokens still see keys that the last ones overwrite in the ring.
    old = cache, view.describe_slots(view.old_lengths, capacity)
    readable, key_info = jax.tree.map(
        lambda old, x: jnp.concatenate([old.astype(x.dtype), x], axis=1),
        old,
        (new, tokens),
    )
    return readable, key_info, updated
