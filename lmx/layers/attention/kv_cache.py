"""The KV cache: its state, its update, and where cached tokens are.

Token i of a row is in slot `i % capacity`, without padding. So rows may have different
lengths, and a cache smaller than the text is a ring buffer of the newest tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree, Shaped

from lmx.layers.mask import TokenInfo, describe_tokens, positions_from_segments
from lmx.layers.position import Length


class KVCache(NamedTuple):
    """State of every layer, and the position and document of the cached tokens."""

    layers: PyTree  # a BlockCache for each kind of layer, leading dimension L
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]  # 0 in empty slots
    lengths: Int[Array, "B"]  # tokens per row so far
    final_length: Int[Array, ""]  # tokens of the longest row once it is complete

    @property
    def capacity(self) -> int:
        """Maximum number of tokens per row."""
        return self.segments.shape[1]

    def append(
        self, positions: Int[Array, "B T"], segments: Int[Array, "B T"]
    ) -> tuple[TokenInfo, "KVCache"]:
        """New tokens, and the cache with them; `layers` are updated by the layers."""
        unpadded_BT = segments > 0
        index_BT = self.lengths[:, None] + jnp.cumsum(unpadded_BT, axis=1) - 1
        index_BT = jnp.where(unpadded_BT, index_BT, -1).astype(jnp.int32)
        lengths_B = self.lengths + unpadded_BT.sum(axis=1, dtype=jnp.int32)
        cache = self._replace(
            positions=write_slots(self.positions, positions, index_BT, lengths_B),
            segments=write_slots(self.segments, segments, index_BT, lengths_B),
            lengths=lengths_B,
        )
        return TokenInfo(positions, index_BT, segments), cache

    def describe_slots(self, lengths: Int[Array, "B"], capacity: int) -> TokenInfo:
        """The tokens in `capacity` slots of rows when they had these `lengths`."""
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

    def select(self, rows: Int[Array, "M"]) -> "KVCache":
        """The cache of these rows, in this order, possibly repeated."""
        return self._replace(
            layers=jax.tree.map(lambda x: x[:, rows], self.layers),
            positions=self.positions[rows],
            segments=self.segments[rows],
            lengths=self.lengths[rows],
        )


def write_slots(
    cache: Shaped[Array, "B S *dims"],
    new: Shaped[Array, "B T *dims"],
    index: Int[Array, "B T"],
    new_lengths: Int[Array, "B"],
) -> Shaped[Array, "B S *dims"]:
    """`cache` with the newest of `new` in their slots; negative `index` is padding."""
    capacity = cache.shape[1]
    written_BT = (index >= 0) & (index >= new_lengths[:, None] - capacity)
    slot_BT = jnp.where(written_BT, index % capacity, capacity)  # dropped if capacity
    row_B1 = jnp.arange(cache.shape[0])[:, None]
    return cache.at[row_B1, slot_BT].set(new.astype(cache.dtype), mode="drop")


class AttentionInputs(NamedTuple):
    """Inputs that all layers share."""

    tokens: TokenInfo  # of this call
    length: Length  # tokens of this call, or of the complete text of a cache
    cache: KVCache | None = None  # with the tokens of this call, without `layers`
    keys: Key[Array, "B"] | None = None  # for dropout; None: no dropout
    single_document: bool = False  # every row is one document without padding

    @property
    def old_lengths(self) -> Int[Array, "B"]:
        """Tokens per row of the cache before this call."""
        assert self.cache is not None
        return self.cache.lengths - self.tokens.unpadded.sum(axis=1, dtype=jnp.int32)


def update_cache(
    cache: PyTree, new: PyTree, inputs: AttentionInputs
) -> tuple[PyTree, TokenInfo, PyTree]:
    """Returns what can be attended to, its tokens, and the updated cache of a layer."""
    tokens, view = inputs.tokens, inputs.cache
    if cache is None or view is None:
        return new, tokens, None
    updated = jax.tree.map(
        lambda old, x: write_slots(old, x, tokens.index, view.lengths), cache, new
    )
    length, capacity = tokens.segments.shape[1], jax.tree.leaves(cache)[0].shape[1]
    if capacity == view.capacity or length == 1:
        readable = jax.tree.map(lambda x, y: x.astype(y.dtype), updated, new)
        return readable, view.describe_slots(view.lengths, capacity), updated
    # The first new tokens still see keys that the last ones overwrite in the ring.
    old = cache, view.describe_slots(inputs.old_lengths, capacity)
    readable, key_info = jax.tree.map(
        lambda old, x: jnp.concatenate([old.astype(x.dtype), x], axis=1),
        old,
        (new, tokens),
    )
    return readable, key_info, updated


def make_inputs(
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"] | None,
    segments: Int[Array, "B T"] | None,
    keys: Key[Array, "B"] | None,
) -> AttentionInputs:
    """Inputs of a call without a cache; without `segments` each row is one document."""
    single_document = segments is None
    if segments is None:
        segments = jnp.ones_like(tokens)
    if positions is None:
        positions = positions_from_segments(segments)
    info = describe_tokens(positions, segments)
    return AttentionInputs(
        info, tokens.shape[1], keys=keys, single_document=single_document
    )
