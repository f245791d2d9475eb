"""How much arithmetic a token costs."""

import math

import jax

from lmx.core.sharding import is_variable
from lmx.layers.head import Tied
from lmx.models.decoder import Decoder


def per_token(model: Decoder, length: int) -> float:
    """FLOPs of training on one token: 6 per weight it meets, and attention's own.

    Attention is counted as if every token saw all `length`, the convention of
    Chowdhery et al. 2022, arXiv:2204.02311, appendix B. `model` may be abstract.
    """
    attention = model.stack.blocks.attention
    L, _, N, H = attention.q.w.shape
    weights = sum(map(_met(model), jax.tree.leaves(model, is_leaf=is_variable)))
    if isinstance(model.head, Tied):
        weights += math.prod(model.table.shape)
    return 6.0 * weights + 12.0 * L * N * H * length


def _met(model: Decoder):
    """How many of the weights in a parameter one token is multiplied with."""

    def count(leaf) -> float:
        looked_up = leaf.into in (("vocab",), ("length",))
        if not leaf.into or looked_up:
            return 0.0
        share = 1.0
        if "experts" in leaf.axes and "experts" not in (*leaf.into, *leaf.out_of):
            share = model.stack.blocks.mlp.share
        return share * math.prod(leaf.shape)

    return count
