"""What it is worth that each device sorts its own tokens: `python benchmarks/moe.py`.

The gradient of one mixture of experts on eight fake devices: as one program that XLA
splits, with one sort of all tokens, and as one program a device, which exchanges rows.
Bytes that a device needs beside its inputs and outputs, and hands over or gets by
collectives, and milliseconds, all of them in turn. Fake devices share the cores, and
what a collective costs there is a copy.
"""

import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from lmx.core import partitioning
from lmx.core.sharding import RULES, Mesh, format_mesh, shardings, spec
from lmx.layers.init import FanIn, Init
from lmx.layers.moe.moe import MoE
from lmx.layers.moe.router import TopKRouter

ROUNDS = 5
B, T, D, E, F, C = 16, 64, 64, 8, 128, 2
MESHES = (dict(data=8), dict(data=1, expert=8), dict(data=1, fsdp=2, expert=4))
MOVED = r"= (.*) (?:all-gather|all-reduce|all-to-all|reduce-scatter)\("


def main() -> None:
    """Prints a table: mesh, program, MiB needed and moved, milliseconds, ratio."""
    print(f"{jax.devices()[0].device_kind}, {platform.machine()}, {ROUNDS} rounds")
    print(f"{'mesh':<18} {'program':<8} {'MiB':>6} {'moved':>6}", end="")
    print(f" {'min':>7} {'median':>7} {'max':>7}  ms; ratio")
    for axes in MESHES:
        takes = {"one": program(axes, whole=True), "each": program(axes, whole=False)}
        taken: dict[str, list[float]] = {name: [] for name in takes}
        for take in takes.values():
            jax.block_until_ready(take())
        for _ in range(ROUNDS):
            for name, take in takes.items():
                began = time.perf_counter()
                jax.block_until_ready(take())
                taken[name].append(time.perf_counter() - began)
        base = statistics.median(taken["one"])
        for name, times in taken.items():
            compiled = takes[name].func
            used = compiled.memory_analysis().temp_size_in_bytes / 2**20
            middle = statistics.median(times)
            ms = " ".join(f"{1e3 * t:7.1f}" for t in (min(times), middle, max(times)))
            row = (
                f"{format_mesh(axes):<18} {name:<8} {used:6.1f} {moved(compiled):6.1f}"
            )
            print(f"{row} {ms}  {middle / base:5.2f}")


def program(axes: Mapping[str, int], *, whole: bool) -> partial[Any]:
    """The gradient of a layer, compiled for a mesh, and what it is called with."""
    mesh = Mesh(**axes).build(jax.devices(), RULES)
    init = Init(nnx.Rngs(0), FanIn(), depth=2)
    layer = MoE(D, init, experts=E, hidden=F, router=partial(TopKRouter, top_k=C))
    graph, params = nnx.split(layer)

    def run(params, x):
        return nnx.merge(graph, params)(x, jnp.ones((B, T), "int32"))[0].sum()

    take: Callable[..., Any] = jax.grad(run, (0, 1))
    if not whole:
        take = partitioning.with_partitioning(mesh, RULES, take)
    params = jax.device_put(params, shardings(params, mesh, RULES))
    rows = NamedSharding(mesh, spec(("batch",), (B,), mesh, RULES))
    x = jax.device_put(jax.random.normal(jax.random.key(0), (B, T, D)), rows)
    return partial(jax.jit(take).lower(params, x).compile(), params, x)


def moved(compiled: Any) -> float:
    """MiB that collectives hand a device."""
    bits = 0
    for shapes in re.findall(MOVED, compiled.as_text()):
        for each, sizes in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", shapes):
            bits += int(each) * math.prod(int(n) for n in sizes.split(",") if n)
    return bits / 8 / 2**20


if __name__ == "__main__":
    main()
