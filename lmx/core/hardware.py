"""Peak FLOP/s of devices, flags of the TPU compiler, and host memory."""

import math
import os
from collections.abc import Sequence

import jax
import numpy as np

from lmx.config.value import Config

ALIGNMENT = 64  # bytes: XLA aliases host memory that is so aligned, without a copy

# Dense bfloat16 FLOP/s by `device_kind`, from the vendors' data sheets.
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

# The default of `LIBTPU_INIT_ARGS`, in training and in `lmx plan`: asynchronous
# all-gathers, fused with matmuls in several steps. As in Google's recipes for v5p:
# github.com/AI-Hypercomputer/tpu-recipes, training/v5p.
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
    """Peak FLOP/s of a number of devices; None if it is not known."""
    each = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return each and each * devices


def empty_aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Memory that JAX does not copy to a CPU device."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)


def set_up_jax(config: Config) -> None:
    """Sets the flags of the TPU compiler, unless they are set, and 64-bit types."""
    os.environ.setdefault("LIBTPU_INIT_ARGS", TPU_FLAGS)  # before libtpu is loaded
    if config["model.precision"].build().needs_x64:
        jax.config.update("jax_enable_x64", True)
