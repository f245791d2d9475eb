"""What is known of the devices that programs run on."""

import jax

# Dense bfloat16 FLOP/s of one device, from the vendors' data sheets, by the name that
# jax gives its kind.
PEAKS = {
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


def peak(devices: int) -> float | None:
    """FLOP/s that so many devices could reach; None where that is not known."""
    each = PEAKS.get(jax.devices()[0].device_kind)
    return each and each * devices
