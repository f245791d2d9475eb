"""All-to-all: sends rows to the devices of their experts, and the outputs back."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from lmx.config.registry import configurable
from lmx.core import partitioning


@dataclass(frozen=True)
class AllToAllPlan:
    """Mesh axes, rows per device, and maximum of rows from one device to another."""

    axes: tuple[str, ...]
    rows: int
    capacity: int


# Rows and counts to rows: `dispatch` or `combine` of one plan.
Exchange = Callable[[Array, Array], Array]


class AllToAll(ABC):
    """Base class of all-to-all exchanges of rows between devices.

    `counts` has the number of rows from each device to each. The rows of a device are
    sorted by destination; rows received from device i start at `i * capacity`.
    """

    platforms: ClassVar[tuple[str, ...]] = ()
    dtypes: ClassVar[tuple[str, ...]] = ()

    def check(self, dtype: jnp.dtype) -> None:
        """Raises ConfigError on an unsupported platform."""
        remedy = "set DroplessDispatch.all_to_all=@PaddedAllToAll()."
        partitioning.check_kernel(self, dtype, remedy)

    @abstractmethod
    def dispatch(
        self,
        x: Float[Array, "rows D"],
        counts: Int[Array, "from to"],
        plan: AllToAllPlan,
    ) -> Float[Array, "slots D"]:
        """Sends rows to their devices; returns the received rows."""

    @abstractmethod
    def combine(
        self,
        y: Float[Array, "slots D"],
        counts: Int[Array, "from to"],
        plan: AllToAllPlan,
    ) -> Float[Array, "rows D"]:
        """Sends received rows back: the transpose of `dispatch`."""


@configurable
@dataclass(frozen=True)
class PaddedAllToAll(AllToAll):
    """Sends `capacity` rows to every device, padded with zeros. Runs everywhere."""

    def dispatch(self, x, counts, plan):
        sizes, starts = _local_counts(counts, plan)
        slot = jnp.arange(plan.capacity)[None]
        row = jnp.where(slot < sizes[:, None], starts[:, None] + slot, plan.rows)
        padded = x.at[row].get(mode="fill", fill_value=0)  # row plan.rows: zero
        received = jax.lax.all_to_all(padded, plan.axes, 0, 0, tiled=True)
        return rearrange(received, "devices M D -> (devices M) D")

    def combine(self, y, counts, plan):
        sizes, starts = _local_counts(counts, plan)
        slots = rearrange(y, "(devices M) D -> devices M D", M=plan.capacity)
        received = jax.lax.all_to_all(slots, plan.axes, 0, 0, tiled=True)
        row = jnp.arange(plan.rows)
        device_M = (row[:, None] >= (starts + sizes)[None]).sum(axis=1)
        return received[device_M, row - starts[device_M]]


@configurable
@dataclass(frozen=True)
class RaggedAllToAll(AllToAll):
    """Sends exactly the rows that there are. Not implemented by XLA:CPU."""

    platforms: ClassVar[tuple[str, ...]] = ("gpu", "tpu")

    def dispatch(self, x, counts, plan):
        device = jax.lax.axis_index(plan.axes)
        sizes, starts = _local_counts(counts, plan)
        return jax.lax.ragged_all_to_all(
            x,
            jnp.zeros_like(x, shape=(len(counts) * plan.capacity, x.shape[1])),
            starts,
            sizes,
            jnp.full_like(sizes, device * plan.capacity),
            counts[:, device],
            axis_name=plan.axes,
        )

    def combine(self, y, counts, plan):
        device = jax.lax.axis_index(plan.axes)
        starts = jnp.cumsum(counts, axis=1, dtype=counts.dtype) - counts
        return jax.lax.ragged_all_to_all(
            y,
            jnp.zeros_like(y, shape=(plan.rows, y.shape[1])),
            plan.capacity * jnp.arange(len(counts), dtype=counts.dtype),
            counts[:, device],
            starts[:, device],
            counts[device],
            axis_name=plan.axes,
        )


def exchange(
    send: Exchange,
    transpose: Exchange,
    x: Float[Array, "rows D"],
    counts: Int[Array, "from to"],
) -> Float[Array, "slots D"]:
    """`send(x, counts)`, with `transpose` as its gradient."""
    call = jax.custom_vjp(send)
    call.defvjp(
        lambda x, counts: (send(x, counts), counts),
        lambda counts, grad: (transpose(grad, counts), None),
    )
    return jnp.asarray(call(x, counts))


def _local_counts(counts: Array, plan: AllToAllPlan) -> tuple[Array, Array]:
    """Rows of this device for each device, and where they start among its rows."""
    sizes = counts[jax.lax.axis_index(plan.axes)]
    return sizes, jnp.cumsum(sizes, dtype=sizes.dtype) - sizes
