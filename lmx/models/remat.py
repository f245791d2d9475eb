"""Rematerialization (activation checkpointing): what the backward pass recomputes."""

from collections.abc import Callable
from typing import Any, Literal

import jax

from lmx.config.registry import require

# What the forward pass saves: everything, the products of matrices, those without a
# batch dimension, or only the input of each block. "offload" saves to host memory.
Remat = Literal[
    "keep_all",
    "keep_dots",
    "keep_weight_dots",
    "keep_none",
    "offload_weight_dots",
    "offload_streams",
]
BLOCK_INPUT = "block_input"  # checkpoint name
_policies = jax.checkpoint_policies
_TO_HOST = dict(offload_src="device", offload_dst="pinned_host")
POLICIES = {
    "keep_dots": _policies.dots_saveable,
    "keep_weight_dots": _policies.dots_with_no_batch_dims_saveable,
    "keep_none": _policies.nothing_saveable,
    "offload_weight_dots": _policies.offload_dot_with_no_batch_dims(**_TO_HOST),
    "offload_streams": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[BLOCK_INPUT],
        **_TO_HOST,
    ),
}
OFFLOADING = ("gpu", "tpu")  # on other platforms JAX ignores offloading


def check_offload(remat: Remat, platform: str) -> None:
    """Raises ConfigError if the platform cannot offload."""
    require(
        not remat.startswith("offload") or platform in OFFLOADING,
        f"Decoder.remat={remat} saves activations in host memory, which platform"
        f" {platform!r} does not have separately: choose keep_all, keep_dots,"
        " keep_weight_dots or keep_none.",
    )


def apply_remat(fn: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """`fn` with rematerialization; its first argument is static."""
    if remat == "keep_all":
        return fn
    return jax.checkpoint(fn, policy=POLICIES[remat], static_argnums=0)


def remat_stage(
    fn: Callable[..., Any], remat: Remat, virtual_stages: int
) -> Callable[..., Any]:
    """`fn`, which runs the layers of all stages at once, with rematerialization.

    With several virtual stages "keep_all" saves products only, not the weights that
    each iteration selects.
    """
    if remat == "keep_all" and virtual_stages == 1:
        return fn
    policy = POLICIES["keep_dots" if remat == "keep_all" else remat]

    def stage_policy(primitive: Any, *inputs: Any, **params: Any) -> Any:
        """The policy without the leading stage dimension."""
        if primitive is jax.lax.dot_general_p:
            contracting, (left, right) = params["dimension_numbers"]
            params |= dict(dimension_numbers=(contracting, (left[1:], right[1:])))
        return policy(primitive, *inputs, **params)

    return jax.checkpoint(fn, policy=stage_policy)
