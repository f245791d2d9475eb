"""What a ring saves and shares: `python benchmarks/ring.py`.

One layer of attention, forward and backward, in float32, with its row split over eight
CPU devices: temporary memory of one device as XLA plans it, of `ReferenceAttention`, whose keys
XLA gathers, over that of `RingAttention`; and what the busiest device computes over what it
would if causal work were even, with the ring's course and with pieces as they come.
"""

import os
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import platform

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core import partitioning
from lmx.core.sharding import RULES, Mesh
from lmx.layers import mask
from lmx.layers.attention import ring_schedule
from lmx.layers.attention.backend import (
    AttentionBackend,
    AttentionMask,
    ReferenceAttention,
)
from lmx.layers.attention.ring import RingAttention

DEVICES, HEADS, WIDTH, BLOCK = 8, 2, 32, 128


def temporary(kernel: AttentionBackend, length: int, window: int | None) -> int:
    """Bytes of one device beside what goes in and out."""
    mesh = Mesh(data=1, context=DEVICES).build(jax.devices(), RULES)

    def total(inputs: list[jax.Array]) -> jax.Array:
        q, k, v = (partitioning.constrain(x, "BTNH") for x in inputs)
        here = mask.describe_tokens(*[jnp.ones((1, length), "int32")] * 2)
        return jnp.square(kernel(q, k, v, AttentionMask(here, here, window))).sum()

    program = jax.jit(partitioning.with_partitioning(mesh, RULES, jax.grad(total)))
    shape = jax.ShapeDtypeStruct((1, length, HEADS, WIDTH), "float32")
    taken: Any = program.lower([shape] * 3).compile().memory_analysis()
    return taken.temp_size_in_bytes


def unevenness(steps: tuple[np.ndarray, ...]) -> float:
    """Pairs of blocks that the ring waits for, over those of a mean device."""
    live = np.stack([step[..., 2].sum(axis=1) for step in steps])
    return live.max(axis=1).sum() / live.mean(axis=1).sum()


def main() -> None:
    """Prints both tables."""
    print(f"{platform.machine()}, jax {jax.__version__}, {DEVICES} CPU devices")
    print("tokens  window  reference MB  ring MB  ratio")
    for length in (2048, 4096, 8192):
        for window in (None, 512):
            whole = temporary(ReferenceAttention(), length, window)
            ring = temporary(RingAttention(block=BLOCK), length, window)
            row = f"{length:6} {window or 'none':>7} {whole / 1e6:13.1f}"
            print(f"{row} {ring / 1e6:8.1f} {whole / ring:6.1f}")
    print("tokens  busiest over mean device: ring, pieces as they come")
    for length in (16384, 131072):
        balanced = ring_schedule.choose_schedule(length, DEVICES, BLOCK, None)
        pieces = np.arange(DEVICES)[:, None]
        plain = ring_schedule.build_schedule(pieces, length // DEVICES, BLOCK, None)
        print(
            f"{length:6} {unevenness(balanced.steps):.3f} {unevenness(plain.steps):.3f}"
        )


if __name__ == "__main__":
    main()
