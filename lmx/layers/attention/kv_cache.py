"""The KV cache: its state, its update, and where cached tokens are.

Token i of a row is in slot `i % slots`, without padding. So rows may have different
lengths, and a cache smaller than the text is a ring buffer of the newest tokens.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Int, Key, PyTree, Shaped

from lmx.config.registry import ConfigError, require
from lmx.layers.mask import TokenInfo, describe_tokens, positions_from_segments


class CacheSize(NamedTuple):
    """The size of a new cache.

    Attributes:
        capacity: maximum number of tokens per row.
        rollback: number of newest tokens that `KVCache.truncate` can always remove.
    """

    batch_size: int
    capacity: int
    dtype: jnp.dtype
    rollback: int = 0


class LayerCache:
    """Base class of the state of one layer: a pytree of arrays, by default B first.

    In a `KVCache` the dimension L comes before B.
    """

    def check_truncate(
        self, longest: Int[Array, "M"], lengths: Int[Array, "M"]
    ) -> None:
        """Raises ConfigError unless rows of `longest` tokens can return to `lengths`.

        By default they cannot.
        """
        raise ConfigError(
            f"{type(self).__name__} cannot remove tokens, since it mixes them: keep the"
            " cache from before these tokens, and continue with that one."
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SlotCache(LayerCache):
    """One value per token: keys and values, or latents.

    A layer that sees `window` tokens may have fewer slots than its text has tokens.
    """

    values: PyTree  # arrays of dimensions B S, and those of one token
    slots: int = field(metadata=dict(static=True))
    window: int = field(metadata=dict(static=True))

    @classmethod
    def init(cls, size: CacheSize, window: int | None, token: PyTree) -> "SlotCache":
        """Empty slots for values with the shapes of `token`, which has no B S."""
        window = min(window or size.capacity, size.capacity)
        slots = min(window + size.rollback, size.capacity)
        values = jax.tree.map(
            lambda x: jnp.zeros((size.batch_size, slots, *x.shape), x.dtype), token
        )
        return cls(values, slots, window)

    def append(
        self, new: PyTree, inputs: "AttentionInputs"
    ) -> tuple[PyTree, TokenInfo, "SlotCache"]:
        """The view (what the new tokens can attend to), its tokens, the new cache."""
        tokens, cache = inputs.tokens, inputs.cache
        assert cache is not None
        updated = jax.tree.map(
            lambda old, x: write_slots(old, x, tokens.index, cache.lengths),
            self.values,
            new,
        )
        after = replace(self, values=updated)
        if self.slots == cache.capacity or tokens.segments.shape[1] == 1:
            view = jax.tree.map(lambda x, y: x.astype(y.dtype), updated, new)
            return view, cache.describe_slots(cache.lengths, self.slots), after
        # The first new tokens still see keys that the last ones overwrite in the ring.
        old = self.values, cache.describe_slots(inputs.old_lengths, self.slots)
        view, key_info = jax.tree.map(
            lambda old, x: jnp.concatenate([old.astype(x.dtype), x], axis=1),
            old,
            (new, tokens),
        )
        return view, key_info, after

    def check_truncate(self, longest, lengths):
        removable = self.slots - self.window + 1
        require(
            not holds_anywhere(
                (longest > self.slots) & (lengths < longest - removable)
            ),
            f"{self.slots} slots for a window of {self.window} tokens cannot lose more"
            f" than the newest {removable} of {longest} tokens, and"
            f" {lengths} were to remain: set `rollback` in `init_cache`.",
        )


class KVCache(NamedTuple):
    """State of every layer, and the position and document of the cached tokens."""

    layers: PyTree  # a BlockCache for each kind of layer, leading dimension L
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]  # 0 in empty slots
    lengths: Int[Array, "B"]  # tokens per row so far
    longest: Int[Array, "B"]  # tokens per row before `truncate` removed some
    final_length: Int[Array, "B"]  # tokens of the complete text, for `rotate`

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
        layers = jax.tree.map(lambda x: x[:, rows], self.layers)
        return KVCache(layers, *(x[rows] for x in self[1:]))

    def truncate(self, rows: Int[Array, "M"], lengths: Int[Array, "M"]) -> "KVCache":
        """Removes the newest tokens of `rows`, of which `lengths` at most remain.

        ConfigError if a layer has overwritten tokens that it needs again, or cannot
        remove any. Traced lengths are not checked: remove `rollback` tokens at most.
        """
        lengths = jnp.asarray(lengths, jnp.int32)
        longest_M = jnp.maximum(self.longest, self.lengths)[rows]
        layers = jax.tree.leaves(
            self.layers, is_leaf=lambda x: isinstance(x, LayerCache)
        )
        for layer in layers:
            layer.check_truncate(longest_M, lengths)
        return self._replace(
            lengths=self.lengths.at[rows].min(lengths),
            longest=self.longest.at[rows].set(longest_M),
        )

    def clear(self, rows: Int[Array, "M"]) -> "KVCache":
        """The cache with these rows empty, without what was not finite in them."""
        layers = jax.tree.map(lambda x: x.at[:, rows].set(0), self.layers)
        empty = KVCache(layers, *(x.at[rows].set(0) for x in self[1:]))
        return empty._replace(final_length=self.final_length)

    def insert(self, rows: Int[Array, "M"], other: "KVCache") -> "KVCache":
        """The cache with the rows of `other` in place of these; drops rows beyond B.

        `other` may have a lower capacity, which its rows must not have exceeded.
        """
        exceeded = other.capacity < self.capacity and holds_anywhere(
            other.lengths > other.capacity
        )

        def put(x: Array, y: Array) -> Array:
            same = x.shape[1:] == y.shape[1:]
            require(
                same or (x.shape[1] >= y.shape[1] == other.capacity and not exceeded),
                f"rows of {other.lengths} tokens in a cache for {other.capacity} do not"
                f" fit into one for {self.capacity}: make both with the same model and"
                " `rollback`, and the first one as large as its rows, at most.",
            )
            padded = jnp.zeros((len(y), *x.shape[1:]), x.dtype)
            return x.at[rows].set(padded.at[tuple(map(slice, y.shape))].set(y))

        old, structure = jax.tree.flatten(self.layers)
        layers = map(jax.vmap(put), old, jax.tree.leaves(other.layers))
        return KVCache(structure.unflatten(layers), *map(put, self[1:], other[1:]))


def holds_anywhere(condition: Bool[Array, "M"]) -> bool:
    """Whether a condition is known to be True somewhere: False for a traced one."""
    return not isinstance(condition, Tracer) and bool(condition.any())


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
    length: int | Int[Array, "B"]  # tokens of this call, or of each complete text
    cache: KVCache | None = None  # with the tokens of this call, without `layers`
    keys: Key[Array, "B"] | None = None  # for dropout; None: no dropout
    single_document: bool = False  # every row is one document without padding

    @property
    def old_lengths(self) -> Int[Array, "B"]:
        """Tokens per row of the cache before this call."""
        assert self.cache is not None
        return self.cache.lengths - self.tokens.unpadded.sum(axis=1, dtype=jnp.int32)


def update_cache(
    cache: SlotCache | None, new: PyTree, inputs: AttentionInputs
) -> tuple[PyTree, TokenInfo, SlotCache | None]:
    """The view (what can be attended to), its tokens, the new cache if there is one."""
    return cache.append(new, inputs) if cache else (new, inputs.tokens, None)


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
