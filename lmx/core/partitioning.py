"""Sharding constraints and per-device code by logical axis, valid during tracing.

`with_partitioning` sets the mesh and rules that a function is traced with. Outside of
it, as in a test of one layer, nothing is sharded: `constrain` returns its argument, and
`shard_map` its function. Dimensions are named by the letters of `core/dims.py`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped

from lmx.config.registry import check_argument, require
from lmx.core import sharding
from lmx.core.dims import logical
from lmx.core.sharding import AnyMesh, Rules

F = TypeVar("F", bound=Callable[..., Any])

REPLICA = "replica"  # the mesh axis of slices of devices, which slow links connect


class PartitionContext(NamedTuple):
    """The mesh and the sharding rules of the program that is traced."""

    mesh: AnyMesh
    rules: Rules
    vmapped_axes: tuple[str, ...] = ()  # see `vmap_over_axes`; no rule has them

    def spec(self, letters: str, shape: Sequence[int] | None = None) -> PartitionSpec:
        """The sharding of an array; without a shape, evenness is not checked."""
        shape = (0,) * len(letters) if shape is None else shape
        return sharding.spec(logical(letters), shape, self.mesh, self.rules)


_ONE_DEVICE = PartitionContext(AbstractMesh((1,), (REPLICA,)), {})
_CONTEXT: ContextVar[PartitionContext] = ContextVar("partitioning", default=_ONE_DEVICE)


@contextmanager
def use(context: PartitionContext) -> Iterator[None]:
    """Traces its body, or the function that it decorates, with mesh and rules."""
    token = _CONTEXT.set(context)
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def with_partitioning(mesh: AnyMesh, rules: Rules, fn: F) -> F:
    """`fn`, traced with this mesh and these rules."""
    return use(PartitionContext(mesh, rules))(fn)


def mesh_axes(letter: str, within: str = "") -> tuple[str, ...]:
    """The mesh axes, longer than one, that split a dimension of this letter.

    `within` has all letters of the array: earlier dimensions take mesh axes first.
    """
    within = within or letter
    split = _CONTEXT.get().spec(within)[within.index(letter)]
    return (split,) if isinstance(split, str) else split or ()


def platform() -> str:
    """The platform of the program: "cpu", "gpu" or "tpu"."""
    mesh = _CONTEXT.get().mesh
    if not isinstance(mesh, jax.sharding.Mesh):
        return jax.default_backend()
    name = mesh.devices.flat[0].platform
    return "gpu" if name in ("cuda", "rocm") else name


def check_kernel(kernel: Any, dtype: jnp.dtype, remedy: str) -> None:
    """Raises ConfigError unless the kernel supports this platform and dtype.

    Empty `platforms` or `dtypes` support all.
    """
    name, target = type(kernel).__name__, platform()
    require(
        not kernel.platforms or target in kernel.platforms,
        f"{name} runs on {' or '.join(kernel.platforms)}, and this program is for"
        f" {target}: {remedy}",
    )
    require(
        not kernel.dtypes or dtype.name in kernel.dtypes,
        f"{name} computes in {' or '.join(kernel.dtypes)}, not {dtype}: {remedy}",
    )


def num_shards(letter: str) -> int:
    """The number of shards of a dimension of this letter."""
    sizes = _CONTEXT.get().mesh.shape
    return math.prod(sizes[axis] for axis in mesh_axes(letter))


def constrain(x: Shaped[Array, "*dims"], letters: str) -> Shaped[Array, "*dims"]:
    """Shards `x` by the rules for an array of these letters.

    "_" leaves the sharding of a dimension to XLA.
    """
    context = _CONTEXT.get()
    if context.mesh.size == 1:
        return x
    sizes = [n for letter, n in zip(letters, x.shape, strict=True) if letter != "_"]
    split = iter(context.spec(letters.replace("_", ""), sizes))
    free = PartitionSpec.UNCONSTRAINED
    spec = PartitionSpec(*(free if d == "_" else next(split) for d in letters))
    return jax.lax.with_sharding_constraint(x, NamedSharding(context.mesh, spec))


def constrain_embedding(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Shards `x` along D first, and along B and T by the mesh axes that are left.

    This is the layout of a lookup in a table VD that is sharded along D. The change to
    that of BTD then is one all-to-all, where XLA would gather all rows on all devices.
    """
    return jnp.moveaxis(constrain(jnp.moveaxis(x, -1, 0), "DBT"), 0, -1)


def vmap_over_axes(
    axes: tuple[str, ...], fn: Callable[..., Any], in_axes: Any = 0
) -> Callable[..., Any]:
    """`jax.vmap(fn, in_axes)` with its leading dimension sharded over these mesh axes.

    Within `fn` the rules use the other mesh axes only.
    """
    if not axes:
        return jax.vmap(fn, in_axes)
    context = _CONTEXT.get()
    rules = {
        name: tuple(axis for axis in onto if axis not in axes)
        for name, onto in context.rules.items()
    }
    inner = PartitionContext(context.mesh, rules, context.vmapped_axes + axes)
    return jax.vmap(use(inner)(fn), in_axes, spmd_axis_name=axes)


def vmap_over_replicas(fn: Callable[..., Any], count: int) -> Callable[..., Any]:
    """`jax.vmap(fn)` over `count` replicas, each on its own slice if there are several.

    Within `fn` the rules split rows over the devices of a slice.
    """
    slices = _CONTEXT.get().mesh.shape[REPLICA]
    if slices == 1:
        return jax.vmap(fn)
    check_argument(
        slices == count,
        f"{count} replicas do not fit {slices} slices of devices: set Mesh.replica to 1"
        f" or {count}.",
    )
    return vmap_over_axes((REPLICA,), fn)


def sum_over_slices(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, computed as the sum of `fn` of the rows of each slice.

    Gradients are thus reduced within slices first, and cross the slow links once.
    """
    if REPLICA not in mesh_axes("B"):
        return fn
    count = _CONTEXT.get().mesh.shape[REPLICA]

    def call(*rows: Any) -> Any:
        split = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), rows)
        each = vmap_over_replicas(fn, count)(*split)
        return jax.tree.map(lambda x: x.sum(axis=0), each)

    return call


def shard_map(
    fn: Callable[..., Any],
    inputs: Sequence[str],
    outputs: Sequence[str] | str,
    *,
    check_vma: bool = True,
) -> Callable[..., Any]:
    """`fn` as the program of one device, on its shards of arrays of these letters.

    Within `fn`, collectives use the names that `mesh_axes` returns outside of it;
    `constrain` and `shard_map` do nothing. An input of no letters ("") is replicated;
    an input may be a tree of arrays of the same letters, or None. `check_vma` must be
    False with Pallas kernels. It is off within `vmap_over_axes`, where the carry of a
    loop may start out replicated.
    """
    context = _CONTEXT.get()
    if context.mesh.size == 1:
        return fn
    local = use(context._replace(mesh=_single_device_mesh(context.mesh)))(fn)

    def input_spec(letters: str, x: Array) -> PartitionSpec:
        return context.spec(letters, x.shape if letters else ())

    def call(*args: Any) -> Any:
        in_specs = [
            jax.tree.map(partial(input_spec, letters), arg)
            for letters, arg in zip(inputs, args, strict=True)
        ]
        return jax.shard_map(
            local,
            mesh=context.mesh,
            in_specs=tuple(in_specs),
            out_specs=jax.tree.map(context.spec, outputs),
            check_vma=check_vma and not context.vmapped_axes,
        )(*args)

    return call


def serialize_collective(
    collective: Callable[[Array], Array],
    x: Shaped[Array, "*dims"],
    after: Shaped[Array, "*other"],
) -> Shaped[Array, "*more"]:
    """`collective(x)`, which on CPUs does not start before `after` is computed.

    XLA:CPU identifies explicit collectives by kind and devices only, and would confuse
    two that run at a time. The collective must treat all elements of `x` alike; it may
    add leading dimensions.
    """
    if platform() != "cpu":
        return collective(x)
    token = after.ravel()[:1].astype(x.dtype)
    both = collective(jnp.concatenate([x.ravel(), token]))
    return both[..., :-1].reshape(*both.shape[:-1], *x.shape)


def _single_device_mesh(mesh: AnyMesh) -> AnyMesh:
    """A mesh of one device of `mesh`, with the same axes."""
    shape, names = (1,) * len(mesh.axis_names), mesh.axis_names
    if isinstance(mesh, jax.sharding.Mesh):
        return jax.sharding.Mesh(mesh.devices.flat[:1].reshape(shape), names)
    return AbstractMesh(shape, names)
