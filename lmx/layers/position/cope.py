"""Positions that count what a query finds worth counting, not tokens."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from lmx.config.registry import configurable
from lmx.layers.init import Init
from lmx.layers.mask import TokenInfo
from lmx.layers.position.relative import RelativePosition


def count_gates(
    gates: Float[Array, "B K G T S"], mask: Bool[Array, "B T S"], key: TokenInfo
) -> Float[Array, "B K G T S"]:
    """How many gates stand open from key s to the last key that query t sees.

    The keys may stand in any order in memory; `key.order` says which came later.
    """
    gates = jnp.where(mask[:, None, None], gates, 0.0)
    order_BS = jnp.argsort(-key.index, axis=-1)  # newest first
    back_BS = jnp.argsort(order_BS, axis=-1)
    newest_first = jnp.take_along_axis(gates, order_BS[:, None, None, None], axis=-1)
    sums = jnp.cumsum(newest_first, axis=-1)
    return jnp.take_along_axis(sums, back_BS[:, None, None, None], axis=-1)


def interpolate(
    table: Float[Array, "B K G T I"], position: Float[Array, "B K G T S"]
) -> Float[Array, "B K G T S"]:
    """Entries of `table` at fractional places, on a line between whole ones."""
    position = jnp.minimum(position, table.shape[-1] - 1)
    low = jnp.floor(position)
    share = position - low
    at_low, at_high = (
        jnp.take_along_axis(table, x.astype(jnp.int32), axis=-1)
        for x in (low, jnp.ceil(position))
    )
    return at_low * (1.0 - share) + at_high * share


@configurable
class CoPE(nnx.Module, RelativePosition):
    """Contextual position encoding. Golovneva et al. 2024, arXiv:2405.18719, section 4.

    A query opens a gate for each key, the sigmoid of their logit; the position of a key
    is the sum of the gates from it to the query, and its vector, between those of the
    two whole positions beside it, adds q e to the logit.

    Attributes:
        limit: positions from 0 to this less one have a vector; beyond, the last one's.
    """

    def __init__(self, heads: int, head_dim: int, init: Init, *, limit: int = 64):
        del heads  # they share the vectors
        if limit < 2:
            raise ValueError(f"CoPE.limit is {limit}: 2 positions are the least.")
        sizes = dict(H=head_dim, I=limit)
        self.table = init.weight("HI", sizes, in_dims="H", out_dims="I")

    def modify_logits(
        self,
        logits: Float[Array, "B K G T S"],
        q: Float[Array, "B T N H"],
        mask: Bool[Array, "B T S"],
        query: TokenInfo,
        key: TokenInfo,
    ) -> Float[Array, "B K G T S"]:
        del query
        q_BTKGH = rearrange(q, "B T (K G) H -> B T K G H", K=logits.shape[1])
        table_HI = self.table[...].astype(q.dtype)
        known = jnp.einsum("BTKGH,HI->BKGTI", q_BTKGH, table_HI).astype(logits.dtype)
        places = count_gates(jax.nn.sigmoid(logits), mask, key)
        return logits + interpolate(known, places)
