"""Expert-parallel and automatically partitioned MoE: `python benchmarks/moe.py`.

Compares two programs for the gradient of a mixture of experts on 8 virtual devices:
`one` sorts all tokens in one program that XLA partitions, `each` is a program per
device that exchanges rows. Prints temporary memory per device, bytes moved by
collectives, and milliseconds, interleaved. Virtual devices share the cores, so a
collective is a copy.
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
COLLECTIVES = r"= (.*) (?:all-gather|all-reduce|all-to-all|reduce-scatter)\("


def main() -> None:
    """Prints a table: mesh, program, MiB used and moved, milliseconds, ratio."""
    print(f"{jax.devices()[0].device_kind}, {platform.machine()}, {ROUNDS} rounds")
    print(f"{'mesh':<18} {'program':<8} {'MiB':>6} {'moved':>6}", end="")
    print(f" {'min':>7} {'median':>7} {'max':>7}  ms; ratio")
    for axes in MESHES:
        programs = {name: compile_gradient(axes, name) for name in ("one", "each")}
        times: dict[str, list[float]] = {name: [] for name in programs}
        for program in programs.values():
            jax.block_until_ready(program())
        for _ in range(ROUNDS):
            for name, program in programs.items():
                start = time.perf_counter()
                jax.block_until_ready(program())
                times[name].append(time.perf_counter() - start)
        base = statistics.median(times["one"])
        for name, seconds in times.items():
            compiled = programs[name].func
            used = compiled.memory_analysis().temp_size_in_bytes / 2**20
            median = statistics.median(seconds)
            ms = " ".join(
                f"{1e3 * t:7.1f}" for t in (min(seconds), median, max(seconds))
            )
            row = f"{format_mesh(axes):<18} {name:<8} {used:6.1f}"
            print(f"{row} {count_moved(compiled):6.1f} {ms}  {median / base:5.2f}")


def compile_gradient(axes: Mapping[str, int], name: str) -> partial[Any]:
    """Returns the compiled gradient of a layer on a mesh, with its arguments."""
    mesh = Mesh(**axes).build(jax.devices(), RULES)
    init = Init(nnx.Rngs(0), FanIn(), depth=2)
    layer = MoE(D, init, experts=E, hidden=F, router=partial(TopKRouter, top_k=C))
    graph, params = nnx.split(layer)

    def run(params, x):
        return nnx.merge(graph, params)(x, jnp.ones((B, T), "int32"))[0].sum()

    gradient: Callable[..., Any] = jax.grad(run, (0, 1))
    if name == "each":
        gradient = partitioning.with_partitioning(mesh, RULES, gradient)
    params = jax.device_put(params, shardings(params, mesh, RULES))
    rows = NamedSharding(mesh, spec(("batch",), (B,), mesh, RULES))
    x = jax.device_put(jax.random.normal(jax.random.key(0), (B, T, D)), rows)
    return partial(jax.jit(gradient).lower(params, x).compile(), params, x)


def count_moved(compiled: Any) -> float:
    """Returns the MiB that collectives move to a device."""
    bits = 0
    for shapes in re.findall(COLLECTIVES, compiled.as_text()):
        for each, sizes in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", shapes):
            bits += int(each) * math.prod(int(n) for n in sizes.split(",") if n)
    return bits / 8 / 2**20


if __name__ == "__main__":
    main()
