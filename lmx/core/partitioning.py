"""What a layer may ask about devices without knowing them: in letters, while traced.

`Experiment.open` traces a step by `with_partitioning`, with its mesh and rules. Elsewhere, as
in a test of one layer, nothing is split: `kept` returns what it is given, and what
`shard_map` returns is the function as it is.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped

from lmx.core import dims
from lmx.core.sharding import AnyMesh, Rules, spec

P = ParamSpec("P")
R = TypeVar("R")


REPLICA = "replica"  # the mesh axis of slices of devices that slow links join


class PartitionContext(NamedTuple):
    """The mesh of a program, and the rules by which its arrays are split.

    Of the axes `vmapped_axes` it is the program of one place: see `vmap_over_axes`.
    """

    mesh: AnyMesh
    rules: Rules
    vmapped_axes: tuple[str, ...] = ()


_CONTEXT: ContextVar[PartitionContext | None] = ContextVar("spread", default=None)


def with_partitioning(
    mesh: AnyMesh, rules: Rules, fn: Callable[P, R]
) -> Callable[P, R]:
    """The same function, within which this module answers for that mesh."""

    @wraps(fn, updated=())
    def traced(*args: P.args, **kwargs: P.kwargs) -> R:
        with _use(PartitionContext(mesh, rules)):
            return fn(*args, **kwargs)

    return traced


@contextmanager
def _use(spread: PartitionContext | None) -> Iterator[None]:
    token = _CONTEXT.set(spread)
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def mesh_axes(letter: str, within: str = "") -> tuple[str, ...]:
    """The mesh axes, longer than one, that split a dimension of this letter.

    Those that are left to it in an array `of` these letters.
    """
    here = _CONTEXT.get()
    if here is None:
        return ()
    within = within or letter
    found = _spec_without_shape(within, here)[within.index(letter)]
    return (found,) if isinstance(found, str) else found or ()


def platform() -> str:
    """What the program is made for: "cpu", "gpu" or "tpu"."""
    here = _CONTEXT.get()
    if here is None or not isinstance(here.mesh, jax.sharding.Mesh):
        return jax.default_backend()
    name = here.mesh.devices.flat[0].platform
    return "gpu" if name in ("cuda", "rocm") else name


def num_shards(letter: str) -> int:
    """Into how many parts a dimension of this letter is split."""
    here = _CONTEXT.get()
    return math.prod(here.mesh.shape[axis] for axis in mesh_axes(letter)) if here else 1


def constrain(x: Shaped[Array, "*dims"], letters: str) -> Shaped[Array, "*dims"]:
    """`x`, split over the devices as the rules say of an array of these letters.

    "_" stands for a dimension that lies as it does.
    """
    here = _CONTEXT.get()
    if here is None or here.mesh.size == 1:
        return x
    sizes = (n for letter, n in zip(letters, x.shape, strict=True) if letter != "_")
    split = iter(_spec(letters.replace("_", ""), tuple(sizes), here))
    as_is = PartitionSpec.UNCONSTRAINED
    place = PartitionSpec(*(as_is if d == "_" else next(split) for d in letters))
    place = NamedSharding(here.mesh, place)
    return jax.lax.with_sharding_constraint(x, place)


def constrain_embedding(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """`x`, split along D first, and rows by the axes that this leaves them.

    So lies what a device looks up in its share of a table of letters VD. From there to
    `kept` of BTD, and back with gradients, each sends of its own alone: XLA, told
    nothing, would bring all rows to all devices.
    """
    return jnp.moveaxis(constrain(jnp.moveaxis(x, -1, 0), "DBT"), 0, -1)


def vmap_over_axes(
    axes: tuple[str, ...], fn: Callable[..., Any], in_axes: Any = 0
) -> Callable[..., Any]:
    """`jax.vmap(fn, in_axes)`, whose leading dimension lies along these mesh axes.

    Each is the program of the devices at one place along them, which split between
    them what the rules say, by the other axes.
    """
    here = _CONTEXT.get()
    if here is None or not axes:
        return jax.vmap(fn, in_axes)
    rules = {
        name: tuple(axis for axis in onto if axis not in axes)
        for name, onto in here.rules.items()
    }

    def placed(*args: Any) -> Any:
        with _use(PartitionContext(here.mesh, rules, (*here.vmapped_axes, *axes))):
            return fn(*args)

    return jax.vmap(placed, in_axes, spmd_axis_name=axes)


def vmap_over_replicas(fn: Callable[..., Any], count: int) -> Callable[..., Any]:
    """`fn` for each of `count` replicas, over a leading dimension of all it is given.

    Each is the program of one slice of devices, whose own rows are split within it.
    """
    here = _CONTEXT.get()
    if here is None or here.mesh.shape[REPLICA] == 1:
        return jax.vmap(fn)
    if here.mesh.shape[REPLICA] != count:
        raise ValueError(
            f"{count} replicas cannot lie on {here.mesh.shape[REPLICA]} slices of"
            f" devices: set Mesh.replica to 1 or {count}."
        )
    return vmap_over_axes((REPLICA,), fn)


def sum_over_slices(fn: Callable[..., Any], *rows: Any) -> Any:
    """The sum of what `fn` makes of each slice's share of rows.

    So a gradient is added up within slices first, each device keeping its part of the
    parameters, and then, once, part by part over the slow links between slices.
    """
    here = _CONTEXT.get()
    if here is None or REPLICA not in mesh_axes("B"):
        return fn(*rows)
    count = here.mesh.shape[REPLICA]
    split = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), rows)
    each = vmap_over_replicas(fn, count)(*split)
    return jax.tree.map(lambda x: x.sum(axis=0), each)


def shard_map(
    fn: Callable[..., Any],
    inputs: Sequence[str],
    outputs: Sequence[str] | str,
    *,
    check_vma: bool = True,
) -> Callable[..., Any]:
    """`fn` as the program of one device, on its share of arrays of these letters.

    Within it collectives go by the names that `axes` gives, and nothing is split
    further: `kept` and `shard_map` do nothing. An input of no letters ("") is whole on
    every device; one may be a tree of arrays of the same letters, or None. A program is
    `typed` if JAX can tell over which mesh axes a result differs, and so check outputs
    for it, and spare sums of gradients that are the same on all devices; within a
    Pallas kernel it cannot, nor within `vmap_over_axes`, where a loop may begin with what is
    the same at every place and go on with what is not.
    """
    here = _CONTEXT.get()
    if here is None or here.mesh.size == 1:
        return fn

    def alone(*args: Any) -> Any:
        with _use(here._replace(mesh=_single_device_mesh(here.mesh))):
            return fn(*args)

    def call(*args: Any) -> Any:
        splits = [
            jax.tree.map(partial(_input_spec, letters, here), arg)
            for letters, arg in zip(inputs, args, strict=True)
        ]
        return jax.shard_map(
            alone,
            mesh=here.mesh,
            in_specs=tuple(splits),
            out_specs=jax.tree.map(lambda x: _spec_without_shape(x, here), outputs),
            check_vma=check_vma and not here.vmapped_axes,
        )(*args)

    return call


def serialize_collective(
    collective: Callable[[Array], Array],
    x: Shaped[Array, "*dims"],
    after: Shaped[Array, "*other"],
) -> Shaped[Array, "*more"]:
    """`collective(x)`, which on CPUs does not begin before `done` is there.

    XLA:CPU tells collectives that are written by hand apart by their kind and devices
    alone: two that are under way at a time would be taken for one. The collective must
    treat all elements of `x` alike; it may add leading dimensions.
    """
    if platform() != "cpu":
        return collective(x)
    rider = after.ravel()[:1].astype(x.dtype)
    both = collective(jnp.concatenate([x.ravel(), rider]))
    return both[..., :-1].reshape(*both.shape[:-1], *x.shape)


def _single_device_mesh(mesh: AnyMesh) -> AnyMesh:
    """The mesh of one device of `mesh`, by which nothing is split."""
    shape, names = (1,) * len(mesh.axis_names), mesh.axis_names
    if isinstance(mesh, jax.sharding.Mesh):
        return jax.sharding.Mesh(mesh.devices.flat[:1].reshape(shape), names)
    return AbstractMesh(shape, names)


def _spec(letters: str, shape: Sequence[int], here: PartitionContext) -> PartitionSpec:
    return spec(dims.logical(letters), shape, here.mesh, here.rules)


def _input_spec(letters: str, here: PartitionContext, x: Array) -> PartitionSpec:
    """The spec of an input."""
    return _spec(letters, x.shape, here) if letters else PartitionSpec()


def _spec_without_shape(letters: str, here: PartitionContext) -> PartitionSpec:
    """The spec of an array that is not there yet; what is split divides."""
    if not letters:
        return PartitionSpec()
    return spec(dims.logical(letters), (0,) * len(letters), here.mesh, here.rules)
