"""What the backward pass computes again rather than keep."""

from collections.abc import Callable
from typing import Any, Literal

import jax

from lmx.config.registry import ConfigError

# What is kept of the forward pass: everything, the products of matrices, those without
# a batch dimension, or nothing but each block's input. The last two keep the latter two
# in the host's memory.
Remat = Literal[
    "keep_all",
    "keep_dots",
    "keep_weight_dots",
    "keep_none",
    "offload_weight_dots",
    "offload_streams",
]
BLOCK_INPUT = "stream"  # the name of each block's input
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
OFFLOADING = ("gpu", "tpu")  # platforms; on others jax compiles offloading to nothing


def check_offload(remat: Remat, platform: str) -> None:
    """Refuses what a platform of that name cannot do."""
    if remat.startswith("offload") and platform not in OFFLOADING:
        raise ConfigError(
            f"Decoder.remat={remat} keeps activations in the host's memory, apart from"
            f" a device's, and there is none on platform {platform!r}: choose one of"
            " keep_all, keep_dots, keep_weight_dots and keep_none."
        )


def apply_remat(fn: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """The same function, whose first argument is static."""
    if remat == "keep_all":
        return fn
    return jax.checkpoint(fn, policy=POLICIES[remat], static_argnums=0)


def remat_stage(
    fn: Callable[..., Any], remat: Remat, virtual_stages: int
) -> Callable[..., Any]:
    """The same function of a stage's layers, which all stages run at once.

    In several rounds "keep_all" keeps products only, since weights at hand, which each
    turn picks out anew, would be kept with all the rest.
    """
    if remat == "keep_all" and virtual_stages == 1:
        return fn
    policy = POLICIES["keep_dots" if remat == "keep_all" else remat]

    def unstaged(primitive: Any, *inputs: Any, **params: Any) -> Any:
        """The policy for one stage: without the leading dimension of all of them."""
        if primitive is jax.lax.dot_general_p:
            summed, (left, right) = params["dimension_numbers"]
            params |= dict(dimension_numbers=(summed, (left[1:], right[1:])))
        return policy(primitive, *inputs, **params)

    return jax.checkpoint(fn, policy=unstaged)
