"""Memory and load balance of ring attention: `python benchmarks/ring.py`.

One layer of attention, forward and backward, in float32, with its sequence sharded over
eight CPU devices. Compares the temporary memory per device, as planned by XLA, of
`ReferenceAttention`, for which XLA gathers the keys, and of `RingAttention`; and the
load of the busiest device over the mean, for zigzag and contiguous sequence shards.
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
from lmx.layers.attention.backend import AttentionBackend, AttentionMask
from lmx.layers.attention.reference import ReferenceAttention
from lmx.layers.attention.ring import RingAttention

DEVICES, HEADS, WIDTH, BLOCK = 8, 2, 32, 128


def measure_memory(backend: AttentionBackend, length: int, window: int | None) -> int:
    """Returns the temporary memory of one device in bytes."""
    mesh = Mesh(data=1, context=DEVICES).build(jax.devices(), RULES)

    def compute_loss(inputs: list[jax.Array]) -> jax.Array:
        q, k, v = (partitioning.constrain(x, "BTNH") for x in inputs)
        tokens = mask.describe_tokens(*[jnp.ones((1, length), "int32")] * 2)
        return jnp.square(backend(q, k, v, AttentionMask(tokens, tokens, window))).sum()

    program = jax.jit(
        partitioning.with_partitioning(mesh, RULES, jax.grad(compute_loss))
    )
    shape = jax.ShapeDtypeStruct((1, length, HEADS, WIDTH), "float32")
    analysis: Any = program.lower([shape] * 3).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def compute_imbalance(steps: tuple[np.ndarray, ...]) -> float:
    """Returns the block pairs of the busiest device over those of the mean device."""
    pairs = np.stack([step[..., 2].sum(axis=1) for step in steps])
    return pairs.max(axis=1).sum() / pairs.mean(axis=1).sum()


def main() -> None:
    """Prints both tables."""
    print(f"{platform.machine()}, jax {jax.__version__}, {DEVICES} CPU devices")
    print("tokens  window  reference MB  ring MB  ratio")
    for length in (2048, 4096, 8192):
        for window in (None, 512):
            reference = measure_memory(ReferenceAttention(), length, window)
            ring = measure_memory(RingAttention(block=BLOCK), length, window)
            row = f"{length:6} {window or 'none':>7} {reference / 1e6:13.1f}"
            print(f"{row} {ring / 1e6:8.1f} {reference / ring:6.1f}")
    print("tokens  load of the busiest device over the mean: zigzag, contiguous")
    for length in (16384, 131072):
        balanced = ring_schedule.choose_schedule(length, DEVICES, BLOCK, None)
        parts = np.arange(DEVICES)[:, None]
        contiguous = ring_schedule.build_schedule(parts, length // DEVICES, BLOCK, None)
        ratios = map(compute_imbalance, (balanced.steps, contiguous.steps))
        print(f"{length:6}", *(f"{ratio:.3f}" for ratio in ratios))


if __name__ == "__main__":
    main()
