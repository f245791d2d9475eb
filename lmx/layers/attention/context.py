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
from lmx.layers.mask import Place
from lmx.layers.position.relative import Length

Tree = TypeVar("Tree")


class Read(NamedTuple):
    """All tokens that a cache has read, those at hand among them."""

    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]  # 0 where nothing was read
    before: Int[Array, "B"]  # tokens a row had before those at hand
    after: Int[Array, "B"]  # and with them

    @property
    def room(self) -> int:
        """How many tokens a row can have."""
        return self.segments.shape[1]

    def slots(self, count: Int[Array, "B"], room: int) -> Place:
        """Where the tokens in `room` slots stand when rows have `count` tokens."""
        newest_B1 = count[:, None] - 1
        slot_1S = jnp.arange(room)[None]
        order_BS = newest_B1 - (newest_B1 - slot_1S) % room
        filled_BS = (order_BS >= 0) & (count[:, None] > 0)
        at_BS = order_BS % self.room
        positions_BS, segments_BS = (
            jnp.take_along_axis(x, at_BS, axis=1)
            for x in (self.positions, self.segments)
        )
        # Nothing sees an empty slot, not even padding.
        return Place(positions_BS, order_BS, jnp.where(filled_BS, segments_BS, -1))


class Context(NamedTuple):
    """What every layer is told about the tokens, beside their vectors."""

    here: Place  # of the tokens at hand
    length: Length  # tokens of this call, or those its cache will have come to
    read: Read | None = None  # where there is a cache
    keys: Key[Array, "B"] | None = None  # for dropout; None: there is none
    whole: bool = False  # each row is known to be one document without padding

    def at(self, layer: Int[Array, ""]) -> "Context":
        """The same with keys of a layer's own."""
        if self.keys is None:
            return self
        fold = jax.vmap(jax.random.fold_in, (0, None))
        return self._replace(keys=fold(self.keys, layer))


def reading(
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"] | None,
    segments: Int[Array, "B T"] | None,
    keys: Key[Array, "B"] | None,
) -> Context:
    """Of whole rows. Each is one document if there are no `segments`.

    Without `positions` they restart at 0 with each document.
    """
    whole = segments is None
    if segments is None:
        segments = jnp.ones_like(tokens)
    if positions is None:
        positions = mask.restarting(segments)
    here = mask.standing(positions, segments)
    return Context(here, tokens.shape[1], keys=keys, whole=whole)


def put(
    past: Shaped[Array, "B S *dims"],
    new: Shaped[Array, "B T *dims"],
    order: Int[Array, "B T"],
    after: Int[Array, "B"],
) -> Shaped[Array, "B S *dims"]:
    """`past` with the newest of `new` in their slots; padding has a negative order.

    Rows have `after` tokens then.
    """
    room = past.shape[1]
    stays_BT = (order >= 0) & (order >= after[:, None] - room)
    slot_BT = jnp.where(stays_BT, order % room, room)  # one too far is not written
    row_B1 = jnp.arange(past.shape[0])[:, None]
    return past.at[row_B1, slot_BT].set(new.astype(past.dtype), mode="drop")


def remember(
    past: Tree | None, new: Tree, context: Context
) -> tuple[Tree, Place, Tree | None]:
    """What can be attended to, where it stands, and the past with `new` in it.

    Every array of `new` has dimensions B, T and others.
    """
    if past is None or context.read is None:
        return new, context.here, None
    here, read = context.here, context.read
    after = jax.tree.map(lambda old, x: put(old, x, here.order, read.after), past, new)
    tokens, room = here.segments.shape[1], jax.tree.leaves(past)[0].shape[1]
    if room == read.room or tokens == 1:
        return _like(after, new), read.slots(read.after, room), after
    # What the ring has lost to the last tokens is still seen by the first.
    joined = jax.tree.map(
        lambda old, x: jnp.concatenate([old.astype(x.dtype), x], axis=1), past, new
    )
    place = jax.tree.map(
        lambda *parts: jnp.concatenate(parts, axis=1),
        read.slots(read.before, room),
        here,
    )
    return joined, place, after


def _like(tree: Tree, other: Tree) -> Tree:
    """The dtypes of `other`."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, other)
