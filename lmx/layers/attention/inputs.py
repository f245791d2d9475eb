"""What a layer is told about its tokens, and how it remembers them.

A row's tokens are remembered in the order in which they come, padding left out, each in
the slot `order % room`: so rows may be of different lengths, padded on either side, and
a room smaller than the text is a ring that holds the newest.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, Shaped

from lmx.layers import mask
from lmx.layers.mask import TokenInfo
from lmx.layers.position.relative import Length

Tree = TypeVar("Tree")


class CacheView(NamedTuple):
    """All tokens that a cache has read, those at hand among them."""

    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]  # 0 where nothing was read
    old_lengths: Int[Array, "B"]  # tokens a row had before those at hand
    new_lengths: Int[Array, "B"]  # and with them

    @property
    def capacity(self) -> int:
        """How many tokens a row can have."""
        return self.segments.shape[1]

    def describe_slots(self, lengths: Int[Array, "B"], capacity: int) -> TokenInfo:
        """Where the tokens in `room` slots stand when rows have `count` tokens."""
        newest_B1 = lengths[:, None] - 1
        slot_1S = jnp.arange(capacity)[None]
        order_BS = newest_B1 - (newest_B1 - slot_1S) % capacity
        filled_BS = (order_BS >= 0) & (lengths[:, None] > 0)
        at_BS = order_BS % self.capacity
        positions_BS, segments_BS = (
            jnp.take_along_axis(x, at_BS, axis=1)
            for x in (self.positions, self.segments)
        )
        # Nothing sees an empty slot, not even padding.
        return TokenInfo(positions_BS, order_BS, jnp.where(filled_BS, segments_BS, -1))


class AttentionInputs(NamedTuple):
    """What every layer is told about the tokens, beside their vectors."""

    tokens: TokenInfo  # of the tokens at hand
    length: Length  # tokens of this call, or those its cache will have come to
    cache: CacheView | None = None  # where there is a cache
    keys: Key[Array, "B"] | None = None  # for dropout; None: there is none
    single_document: bool = (
        False  # each row is known to be one document without padding
    )

    def for_layer(self, layer: Int[Array, ""]) -> "AttentionInputs":
        """The same with keys of a layer's own."""
        if self.keys is None:
            return self
        fold = jax.vmap(jax.random.fold_in, (0, None))
        return self._replace(keys=fold(self.keys, layer))


def make_inputs(
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"] | None,
    segments: Int[Array, "B T"] | None,
    keys: Key[Array, "B"] | None,
) -> AttentionInputs:
    """Of whole rows. Each is one document if there are no `segments`.

    Without `positions` they restart at 0 with each document.
    """
    whole = segments is None
    if segments is None:
        segments = jnp.ones_like(tokens)
    if positions is None:
        positions = mask.positions_from_segments(segments)
    here = mask.describe_tokens(positions, segments)
    return AttentionInputs(here, tokens.shape[1], keys=keys, single_document=whole)


def write_slots(
    cache: Shaped[Array, "B S *dims"],
    new: Shaped[Array, "B T *dims"],
    index: Int[Array, "B T"],
    new_lengths: Int[Array, "B"],
) -> Shaped[Array, "B S *dims"]:
    """`past` with the newest of `new` in their slots; padding has a negative order.

    Rows have `after` tokens then.
    """
    room = cache.shape[1]
    stays_BT = (index >= 0) & (index >= new_lengths[:, None] - room)
    slot_BT = jnp.where(stays_BT, index % room, room)  # one too far is not written
    row_B1 = jnp.arange(cache.shape[0])[:, None]
    return cache.at[row_B1, slot_BT].set(new.astype(cache.dtype), mode="drop")


def update_cache(
    cache: Tree | None, new: Tree, inputs: AttentionInputs
) -> tuple[Tree, TokenInfo, Tree | None]:
    """What can be attended to, where it stands, and the past with `new` in it.

    Every array of `new` has dimensions B, T and others.
    """
    if cache is None or inputs.cache is None:
        return new, inputs.tokens, None
    here, read = inputs.tokens, inputs.cache
    after = jax.tree.map(
        lambda old, x: write_slots(old, x, here.index, read.new_lengths), cache, new
    )
    tokens, room = here.segments.shape[1], jax.tree.leaves(cache)[0].shape[1]
    if room == read.capacity or tokens == 1:
        return (
            _cast_like(after, new),
            read.describe_slots(read.new_lengths, room),
            after,
        )
    # What the ring has lost to the last tokens is still seen by the first.
    joined = jax.tree.map(
        lambda old, x: jnp.concatenate([old.astype(x.dtype), x], axis=1), cache, new
    )
    place = jax.tree.map(
        lambda *parts: jnp.concatenate(parts, axis=1),
        read.describe_slots(read.old_lengths, room),
        here,
    )
    return joined, place, after


def _cast_like(tree: Tree, other: Tree) -> Tree:
    """The dtypes of `other`."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, other)
