"""What is known of the devices that programs run on."""

import jax

# Dense bfloat16 FLOP/s of one device, from the vendors' data sheets, by the name that
# jax gives its kind.
PEAK_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}

# What libtpu is told by `LIBTPU_INIT_ARGS` where nobody says otherwise, in training and
# in `lmx plan` alike: weights are gathered while products go on, in steps, and on a
# torus of three dimensions by gathers rather than by sums. As in Google's recipes for
# v5p: github.com/AI-Hypercomputer/tpu-recipes, training/v5p.
TPU_FLAGS = " ".join(
    f"--xla_{flag}"
    for flag in (
        "enable_async_all_gather=true",
        "enable_all_gather_3d_emitter=true",
        "tpu_enable_async_collective_fusion=true",
        "tpu_enable_async_collective_fusion_fuse_all_gather=true",
        "tpu_enable_async_collective_fusion_multiple_steps=true",
        "tpu_enable_net_router_in_all_gather=false",
        "tpu_overlap_compute_collective_tc=true",
        "tpu_prefer_async_allgather_to_allreduce=true",
    )
)


def peak_flops(devices: int) -> float | None:
    """FLOP/s that so many devices could reach; None where that is not known."""
    each = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return each and each * devices
