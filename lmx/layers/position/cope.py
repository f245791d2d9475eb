"""CoPE: contextual positions that count the tokens selected by a gate."""

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
    """Sum of the gates from key s to the last key that query t sees.

    Keys may be stored in any order; `key.index` gives their order in the text.
    """
    gates = jnp.where(mask[:, None, None], gates, 0.0)
    order_BS = jnp.argsort(-key.index, axis=-1)  # newest first
    inverse_BS = jnp.argsort(order_BS, axis=-1)
    newest_first = jnp.take_along_axis(gates, order_BS[:, None, None, None], axis=-1)
    sums = jnp.cumsum(newest_first, axis=-1)
    return jnp.take_along_axis(sums, inverse_BS[:, None, None, None], axis=-1)


def interpolate(
    table: Float[Array, "B K G T I"], position: Float[Array, "B K G T S"]
) -> Float[Array, "B K G T S"]:
    """Entries of `table` at fractional positions, by linear interpolation."""
    position = jnp.minimum(position, table.shape[-1] - 1)
    low = jnp.floor(position)
    fraction = position - low
    at_low, at_high = (
        jnp.take_along_axis(table, x.astype(jnp.int32), axis=-1)
        for x in (low, jnp.ceil(position))
    )
    return at_low * (1.0 - fraction) + at_high * fraction


@configurable
class CoPE(nnx.Module, RelativePosition):
    """Contextual position encoding. Golovneva et al. 2024, arXiv:2405.18719, section 4.

    The gate of a query and a key is the sigmoid of their logit. The position of a key
    is the sum of the gates from it to the query; the vector e, interpolated at that
    position, adds q e to the logit.

    Attributes:
        limit: number of position vectors; higher positions use the last.
    """

    def __init__(self, heads: int, head_dim: int, init: Init, *, limit: int = 64):
        if limit < 2:
            raise ValueError(f"CoPE.limit is {limit}: it must be 2 or more.")
        sizes = dict(H=head_dim, I=limit)  # shared by all heads
        self.table = init.weight("HI", sizes, in_dims="H", out_dims="I")

    def modify_logits(
        self,
        logits: Float[Array, "B K G T S"],
        q: Float[Array, "B T N H"],
        mask: Bool[Array, "B T S"],
        query: TokenInfo,
        key: TokenInfo,
    ) -> Float[Array, "B K G T S"]:
        q_BTKGH = rearrange(q, "B T (K G) H -> B T K G H", K=logits.shape[1])
        table_HI = self.table[...].astype(q.dtype)
        bias = jnp.einsum("BTKGH,HI->BKGTI", q_BTKGH, table_HI).astype(logits.dtype)
        positions = count_gates(jax.nn.sigmoid(logits), mask, key)
        return logits + interpolate(bias, positions)
