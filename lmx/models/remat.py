"""What the backward pass computes again rather than keep."""

from collections.abc import Callable
from typing import Any, Literal

import jax

# What is kept of the forward pass: everything, the products of matrices, those without
# a batch dimension, or nothing but each block's input.
Remat = Literal["keep_all", "keep_dots", "keep_weight_dots", "keep_none"]
POLICIES = {
    "keep_dots": jax.checkpoint_policies.dots_saveable,
    "keep_weight_dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "keep_none": jax.checkpoint_policies.nothing_saveable,
}


def rematerialised(run: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """The same function, whose first argument is static."""
    if remat == "keep_all":
        return run
    return jax.checkpoint(run, policy=POLICIES[remat], static_argnums=0)
