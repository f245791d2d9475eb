"""How rows get to the devices whose experts they chose, and the answers back."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from lmx.config.registry import ConfigError, configurable
from lmx.core import partitioning


@dataclass(frozen=True)
class AllToAllPlan:
    """Between which devices rows go, and how many there can be.

    Attributes:
        axes: what the devices stand along.
        rows: what each device has.
        most: what one can have for another.
    """

    axes: tuple[str, ...]
    rows: int
    capacity: int


class AllToAll(ABC):
    """Anything that hands rows to other devices and gets them back.

    `table` says how many rows each device has for each. A device has its rows sorted by
    the device they are for; those it gets from the w-th begin at `w * most`, and what
    is between them is zero.
    """

    platforms: ClassVar[tuple[str, ...]] = ("cpu", "gpu", "tpu")

    def check(self) -> None:
        """Refuses devices that cannot do it."""
        if (platform := partitioning.platform()) not in self.platforms:
            raise ConfigError(
                f"the exchange {type(self).__name__} does not run on {platform}: choose"
                " DroplessDispatch.all_to_all=@PaddedAllToAll()."
            )

    @abstractmethod
    def dispatch(
        self,
        x: Float[Array, "rows D"],
        counts: Int[Array, "from to"],
        plan: AllToAllPlan,
    ) -> Float[Array, "slots D"]:
        """What this device gets."""

    @abstractmethod
    def combine(
        self,
        y: Float[Array, "slots D"],
        counts: Int[Array, "from to"],
        plan: AllToAllPlan,
    ) -> Float[Array, "rows D"]:
        """This device's own rows, as others have changed them."""


@configurable
@dataclass(frozen=True)
class PaddedAllToAll(AllToAll):
    """Every device sends every other as many rows as there can be, most of them zero.

    Runs everywhere. Of n tokens, each with C choices among the E experts of a device,
    `n * min(C, E)` rows go to each device, and as many times the devices are held.
    """

    def dispatch(self, x, counts, plan):
        sizes, begins = _local_counts(counts, plan)
        place = jnp.arange(plan.capacity)[None]
        at = begins[:, None] + place
        at = jnp.where(place < sizes[:, None], at, plan.rows)  # beyond: zero
        out = x.at[at].get(mode="fill", fill_value=0)
        got = jax.lax.all_to_all(out, plan.axes, 0, 0, tiled=True)
        return rearrange(got, "devices M D -> (devices M) D")

    def combine(self, y, counts, plan):
        sizes, begins = _local_counts(counts, plan)
        out = rearrange(y, "(devices M) D -> devices M D", M=plan.capacity)
        got = jax.lax.all_to_all(out, plan.axes, 0, 0, tiled=True)
        place = jnp.arange(plan.rows)
        to_M = (place[:, None] >= (begins + sizes)[None]).sum(axis=1)
        return got[to_M, place - begins[to_M]]


@configurable
@dataclass(frozen=True)
class RaggedAllToAll(AllToAll):
    """Every device sends every other the rows that it has for it. XLA:CPU cannot.

    What is received is held as in `PaddedAllToAll`, since all might come at once.
    """

    platforms: ClassVar[tuple[str, ...]] = ("gpu", "tpu")

    def dispatch(self, x, counts, plan):
        me = jax.lax.axis_index(plan.axes)
        sizes, begins = _local_counts(counts, plan)
        return jax.lax.ragged_all_to_all(
            x,
            jnp.zeros_like(x, shape=(len(counts) * plan.capacity, x.shape[1])),
            begins,
            sizes,
            jnp.full_like(sizes, me * plan.capacity),
            counts[:, me],
            axis_name=plan.axes,
        )

    def combine(self, y, counts, plan):
        me = jax.lax.axis_index(plan.axes)
        begins = jnp.cumsum(counts, axis=1, dtype=counts.dtype) - counts
        return jax.lax.ragged_all_to_all(
            y,
            jnp.zeros_like(y, shape=(plan.rows, y.shape[1])),
            plan.capacity * jnp.arange(len(counts), dtype=counts.dtype),
            counts[:, me],
            begins[:, me],
            counts[me],
            axis_name=plan.axes,
        )


def _dispatch(
    exchange: AllToAll,
    x: Float[Array, "rows D"],
    table: Int[Array, "from to"],
    way: AllToAllPlan,
) -> Float[Array, "slots D"]:
    return exchange.dispatch(x, table, way)


def _combine(
    exchange: AllToAll,
    y: Float[Array, "slots D"],
    table: Int[Array, "from to"],
    way: AllToAllPlan,
) -> Float[Array, "rows D"]:
    return exchange.combine(y, table, way)


# Each is the transpose of the other: what is sent one way has its gradient come back.
dispatch = jax.custom_vjp(_dispatch, nondiff_argnums=(0, 3))
combine = jax.custom_vjp(_combine, nondiff_argnums=(0, 3))
dispatch.defvjp(
    lambda exchange, x, table, way: (exchange.dispatch(x, table, way), table),
    lambda exchange, way, table, grad: (exchange.combine(grad, table, way), None),
)
combine.defvjp(
    lambda exchange, y, table, way: (exchange.combine(y, table, way), table),
    lambda exchange, way, table, grad: (exchange.dispatch(grad, table, way), None),
)


def _local_counts(
    table: Int[Array, "from to"], way: AllToAllPlan
) -> tuple[Int[Array, "to"], Int[Array, "to"]]:
    """How many rows this device has for each, and where among its own they begin."""
    sizes = table[jax.lax.axis_index(way.axes)]
    return sizes, jnp.cumsum(sizes, dtype=sizes.dtype) - sizes
