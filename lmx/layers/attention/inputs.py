"""Inputs of every layer besides hidden states: tokens, cache, dropout keys."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from lmx.layers.attention.kv_cache import CacheView
from lmx.layers.mask import TokenInfo, describe_tokens, positions_from_segments
from lmx.layers.position.relative import Length


class AttentionInputs(NamedTuple):
    """Inputs that all layers share."""

    tokens: TokenInfo  # of this call
    length: Length  # tokens of this call, or of the complete text of a cache
    cache: CacheView | None = None
    keys: Key[Array, "B"] | None = None  # for dropout; None: no dropout
    single_document: bool = False  # every row is one document without padding

    def for_layer(self, layer: Int[Array, ""]) -> "AttentionInputs":
        """The inputs with the dropout keys of a layer."""
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
    """Inputs of a call without a cache.

    Without `segments` each row is one document. Without `positions` they restart at 0
    with each document.
    """
    single_document = segments is None
    if segments is None:
        segments = jnp.ones_like(tokens)
    if positions is None:
        positions = positions_from_segments(segments)
    info = describe_tokens(positions, segments)
    return AttentionInputs(
        info, tokens.shape[1], keys=keys, single_document=single_document
    )
