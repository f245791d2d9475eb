"""How much arithmetic a token costs."""

import math

import jax
from flax import nnx

from lmx.core.sharding import is_variable
from lmx.layers.head import TiedLMHead
from lmx.models.decoder import Decoder


def train_flops_per_token(model: Decoder, sequence_length: int) -> float:
    """FLOPs of training on one token: 6 per weight it meets, and attention's own.

    Attention is counted as if every token saw all `length`, or its whole window, the
    convention of Chowdhery et al. 2022, arXiv:2204.02311, appendix B. `model` may be
    abstract.
    """
    table = (
        math.prod(model.embedding.shape) if isinstance(model.head, TiedLMHead) else 0
    )
    further = model.mtp.modules if model.mtp else ()
    products = (count_active_weights(model.head) + table) * (1 + len(further))
    products += sum(count_active_weights(module.projection) for module in further)
    blocks = [*model.stack.kinds(), *((module.block, 1) for module in further)]
    for block, layers in blocks:
        reach = min(sequence_length, block.attention.window or sequence_length)
        products += count_active_weights(block, block.mlp.active_fraction)
        products += layers * block.attention.macs_per_pair * reach
    return 6.0 * products


def count_active_weights(module: nnx.Module, active_fraction: float = 1.0) -> float:
    """How many weights of the module a token is multiplied with.

    Of those that are there for each expert it meets a `share`.
    """

    def count(leaf) -> float:
        if not leaf.into:
            return 0.0
        each = "experts" in leaf.axes and "experts" not in (*leaf.into, *leaf.out_of)
        return math.prod(leaf.shape) * (active_fraction if each else 1.0)

    return sum(map(count, jax.tree.leaves(module, is_leaf=is_variable)), 0.0)
