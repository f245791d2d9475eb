"""Norms of parameters and gradients, in total and by layer."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from lmx.core.sharding import is_variable


def compute_norms(tree: PyTree) -> tuple[Float[Array, ""], Float[Array, "L"]]:
    """The Euclidean norm of a tree of parameters, in total and by layer."""
    leaves = jax.tree.leaves(tree, is_leaf=is_variable)
    numbers = [leaf.get_metadata().get("layers", ()) for leaf in leaves]
    depth = max((max(n) + 1 for n in numbers if n), default=0)
    whole, layers = jnp.zeros(()), jnp.zeros(depth)
    for leaf, number in zip(leaves, numbers, strict=True):
        square = jnp.square(leaf[...]).sum(axis=tuple(range(bool(number), leaf.ndim)))
        whole += square.sum()
        if number:
            layers = layers.at[jnp.array(number)].add(square)
    return jnp.sqrt(whole), jnp.sqrt(layers)


def norm_metrics(**trees: PyTree) -> dict[str, Float[Array, "..."]]:
    """The norms of each tree as metrics: `NAME_norm`, and `NAME_norm/layer`."""
    metrics = {}
    for name, tree in trees.items():
        metrics[f"{name}_norm"], metrics[f"{name}_norm/layer"] = compute_norms(tree)
    return metrics
