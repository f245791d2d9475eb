"""What a ring saves and shares: `python benchmarks/ring.py`.

One layer of attention, forward and backward, in float32, with its row split over eight
CPU devices: temporary memory of one device as XLA plans it, of `Reference`, whose keys
XLA gathers, over that of `Ring`; and what the busiest device computes over what it
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

from lmx.core import spread
from lmx.core.sharding import RULES, Mesh
from lmx.layers import mask
from lmx.layers.attention import course
from lmx.layers.attention.kernel import Kernel, Reference, Seen
from lmx.layers.attention.ring import Ring

DEVICES, HEADS, WIDTH, BLOCK = 8, 2, 32, 128


def temporary(kernel: Kernel, length: int, window: int | None) -> int:
    """Bytes of one device beside what goes in and out."""
    mesh = Mesh(data=1, context=DEVICES).over(jax.devices(), RULES)

    def total(inputs: list[jax.Array]) -> jax.Array:
        q, k, v = (spread.kept(x, "BTNH") for x in inputs)
        here = mask.standing(*[jnp.ones((1, length), "int32")] * 2)
        return jnp.square(kernel(q, k, v, Seen(here, here, window))).sum()

    program = jax.jit(spread.traced_for(mesh, RULES, jax.grad(total)))
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
            whole = temporary(Reference(), length, window)
            ring = temporary(Ring(block=BLOCK), length, window)
            row = f"{length:6} {window or 'none':>7} {whole / 1e6:13.1f}"
            print(f"{row} {ring / 1e6:8.1f} {whole / ring:6.1f}")
    print("tokens  busiest over mean device: ring, pieces as they come")
    for length in (16384, 131072):
        balanced = course.plotted(length, DEVICES, BLOCK, None)
        pieces = np.arange(DEVICES)[:, None]
        plain = course.laid(pieces, length // DEVICES, BLOCK, None)
        print(
            f"{length:6} {unevenness(balanced.steps):.3f} {unevenness(plain.steps):.3f}"
        )


if __name__ == "__main__":
    main()
