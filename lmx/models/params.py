"""Parameter table of a model, and FLOPs per token of training."""

import math
from typing import NamedTuple

import jax
from flax import nnx

from lmx.core.sharding import is_variable
from lmx.layers.head import TiedLMHead
from lmx.models.decoder import Decoder


class Parameter(NamedTuple):
    """One parameter, stacked over its layers."""

    name: str
    sizes: dict[str, int]  # by logical axis

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes.values())


def list_parameters(model: nnx.Module) -> list[Parameter]:
    """The parameters of a model, which may be abstract, sorted by name."""
    _, params = nnx.split(model)
    leaves, _ = jax.tree.flatten_with_path(params, is_leaf=is_variable)
    return [
        Parameter(
            jax.tree_util.keystr(path, simple=True, separator="."),
            dict(zip(leaf.axes, leaf.shape, strict=True)),
        )
        for path, leaf in leaves
    ]


def format_parameters(model: nnx.Module) -> str:
    """One line per parameter, and one for the total."""
    parameters = list_parameters(model)
    total = f"{sum(p.count for p in parameters):,}"
    name = max(len(p.name) for p in parameters)
    lines = [
        f"{p.name:{name}}  {p.count:{len(total)},}  "
        + " ".join(f"{axis}={size}" for axis, size in p.sizes.items())
        for p in parameters
    ]
    return "\n".join([*lines, f"{'parameters':{name}}  {total}"])


def train_flops_per_token(model: Decoder, sequence_length: int) -> float:
    """6 FLOPs per active weight, plus attention to the complete sequence or window.

    Chowdhery et al. 2022, arXiv:2204.02311, appendix B. `model` may be abstract.
    """
    is_tied = isinstance(model.head, TiedLMHead)
    head = math.prod(model.embedding.shape) if is_tied else 0
    mtp = model.mtp.modules if model.mtp else ()
    macs = (count_active_weights(model.head) + head) * (1 + len(mtp))
    macs += sum(count_active_weights(module.projection) for module in mtp)
    for block, layers in [*model.stack.kinds(), *((module.block, 1) for module in mtp)]:
        keys = min(sequence_length, block.attention.window or sequence_length)
        macs += count_active_weights(block, block.mlp.active_fraction)
        macs += layers * block.attention.macs_per_pair * keys
    return 6.0 * macs


def count_active_weights(module: nnx.Module, active_fraction: float = 1.0) -> float:
    """Weights that a token is multiplied with: an `active_fraction` of the experts'."""

    def count(leaf) -> float:
        if not leaf.in_dims:
            return 0.0
        dims = (*leaf.in_dims, *leaf.out_dims)
        per_expert = "experts" in leaf.axes and "experts" not in dims
        return math.prod(leaf.shape) * (active_fraction if per_expert else 1.0)

    return sum(map(count, jax.tree.leaves(module, is_leaf=is_variable)), 0.0)
