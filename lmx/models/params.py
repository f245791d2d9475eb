"""Parameters of a model by path, their table, and FLOPs per token of training."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import nnx
from jaxtyping import PyTree

from lmx.core.sharding import is_variable
from lmx.layers.linear import TiedLMHead
from lmx.models.decoder import Decoder

MAX_NAMES_SHOWN = 8  # in a message
VOCAB = ("embedding", "head")  # parts whose size depends on the vocabulary


def flatten_params(
    tree: PyTree, is_leaf: Callable[[Any], bool] | None = None
) -> dict[str, Any]:
    """Every array, or its shape, by its path, as in `norm.scale`."""
    leaves, _ = jax.tree.flatten_with_path(tree, is_leaf)
    keystr = partial(jax.tree_util.keystr, simple=True, separator=".")
    return {keystr(path).removesuffix(".value"): leaf for path, leaf in leaves}


def list_parameters(model: nnx.Module) -> dict[str, dict[str, int]]:
    """The sizes of each parameter by logical axis, stacked over its layers.

    `model` may be abstract. The names are sorted.
    """
    params = flatten_params(nnx.split(model)[1], is_variable)
    return {
        path: dict(zip(leaf.axes, leaf.shape, strict=True))
        for path, leaf in params.items()
    }


def format_parameters(model: nnx.Module) -> str:
    """One line per parameter, and one for the total."""
    parameters = list_parameters(model)
    counts = {name: math.prod(sizes.values()) for name, sizes in parameters.items()}
    total, width = f"{sum(counts.values()):,}", max(map(len, counts))
    lines = [
        f"{name:{width}}  {counts[name]:{len(total)},}  "
        + " ".join(f"{axis}={size}" for axis, size in sizes.items())
        for name, sizes in parameters.items()
    ]
    return "\n".join([*lines, f"{'parameters':{width}}  {total}"])


def train_flops_per_token(model: Decoder, sequence_length: int) -> float:
    """6 FLOPs per active weight, plus attention to the complete sequence or window.

    Chowdhery et al. 2022, arXiv:2204.02311, appendix B. `model` may be abstract.
    """
    is_tied = isinstance(model.head, TiedLMHead)
    head = count_active_weights(model.embedding) if is_tied else 0
    mtp = model.mtp.modules if model.mtp else ()
    macs = (count_active_weights(model.head) + head) * (1 + len(mtp))
    macs += sum(count_active_weights(module.projection) for module in mtp)
    for block, layers in [*model.stack.kinds(), *((module.block, 1) for module in mtp)]:
        keys = min(sequence_length, block.attention.window or sequence_length)
        macs += count_active_weights(block, block.mlp.active_fraction)
        macs += layers * block.attention.macs_per_pair * keys
    return 6.0 * macs


def count_active_weights(module: PyTree, active_fraction: float = 1.0) -> float:
    """Weights that a token is multiplied with: an `active_fraction` of the experts'."""

    def count(leaf) -> float:
        if not leaf.in_dims:
            return 0.0
        dims = (*leaf.in_dims, *leaf.out_dims)
        per_expert = "experts" in leaf.axes and "experts" not in dims
        return math.prod(leaf.shape) * (active_fraction if per_expert else 1.0)

    return sum(map(count, jax.tree.leaves(module, is_leaf=is_variable)), 0.0)
