"""How rows get to the devices whose experts they chose, and the answers back."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from lmx.config.names import ConfigError, configurable
from lmx.core import spread


@dataclass(frozen=True)
class Way:
    """Between which devices rows go, and how many there can be.

    Attributes:
        axes: what the devices stand along.
        rows: what each device has.
        most: what one can have for another.
    """

    axes: tuple[str, ...]
    rows: int
    most: int


class Exchange(ABC):
    """Anything that hands rows to other devices and gets them back.

    `table` says how many rows each device has for each. A device has its rows sorted by
    the device they are for; those it gets from the w-th begin at `w * most`, and what
    is between them is zero.
    """

    platforms: ClassVar[tuple[str, ...]] = ("cpu", "gpu", "tpu")

    def check(self) -> None:
        """Refuses devices that cannot do it."""
        if (platform := spread.platform()) not in self.platforms:
            raise ConfigError(
                f"the exchange {type(self).__name__} does not run on {platform}: choose"
                " Dropless.exchange=@Padded()."
            )

    @abstractmethod
    def send(
        self, x: Float[Array, "rows D"], table: Int[Array, "from to"], way: Way
    ) -> Float[Array, "slots D"]:
        """What this device gets."""

    @abstractmethod
    def fetch(
        self, y: Float[Array, "slots D"], table: Int[Array, "from to"], way: Way
    ) -> Float[Array, "rows D"]:
        """This device's own rows, as others have changed them."""


@configurable
@dataclass(frozen=True)
class Padded(Exchange):
    """Every device sends every other as many rows as there can be, most of them zero.

    Runs everywhere. Of n tokens, each with C choices among the E experts of a device,
    `n * min(C, E)` rows go to each device, and as many times the devices are held.
    """

    def send(self, x, table, way):
        sizes, begins = _own(table, way)
        place = jnp.arange(way.most)[None]
        at = begins[:, None] + place
        at = jnp.where(place < sizes[:, None], at, way.rows)  # beyond: zero
        out = x.at[at].get(mode="fill", fill_value=0)
        got = jax.lax.all_to_all(out, way.axes, 0, 0, tiled=True)
        return rearrange(got, "devices M D -> (devices M) D")

    def fetch(self, y, table, way):
        sizes, begins = _own(table, way)
        out = rearrange(y, "(devices M) D -> devices M D", M=way.most)
        got = jax.lax.all_to_all(out, way.axes, 0, 0, tiled=True)
        place = jnp.arange(way.rows)
        to_M = (place[:, None] >= (begins + sizes)[None]).sum(axis=1)
        return got[to_M, place - begins[to_M]]


@configurable
@dataclass(frozen=True)
class Ragged(Exchange):
    """Every device sends every other the rows that it has for it. XLA:CPU cannot.

    What is received is held as in `Padded`, since all might come at once.
    """

    platforms: ClassVar[tuple[str, ...]] = ("gpu", "tpu")

    def send(self, x, table, way):
        me = jax.lax.axis_index(way.axes)
        sizes, begins = _own(table, way)
        return jax.lax.ragged_all_to_all(
            x,
            jnp.zeros_like(x, shape=(len(table) * way.most, x.shape[1])),
            begins,
            sizes,
            jnp.full_like(sizes, me * way.most),
            table[:, me],
            axis_name=way.axes,
        )

    def fetch(self, y, table, way):
        me = jax.lax.axis_index(way.axes)
        begins = jnp.cumsum(table, axis=1, dtype=table.dtype) - table
        return jax.lax.ragged_all_to_all(
            y,
            jnp.zeros_like(y, shape=(way.rows, y.shape[1])),
            way.most * jnp.arange(len(table), dtype=table.dtype),
            table[:, me],
            begins[:, me],
            table[me],
            axis_name=way.axes,
        )


def _sent(
    exchange: Exchange,
    x: Float[Array, "rows D"],
    table: Int[Array, "from to"],
    way: Way,
) -> Float[Array, "slots D"]:
    return exchange.send(x, table, way)


def _fetched(
    exchange: Exchange,
    y: Float[Array, "slots D"],
    table: Int[Array, "from to"],
    way: Way,
) -> Float[Array, "rows D"]:
    return exchange.fetch(y, table, way)


# Each is the transpose of the other: what is sent one way has its gradient come back.
sent = jax.custom_vjp(_sent, nondiff_argnums=(0, 3))
fetched = jax.custom_vjp(_fetched, nondiff_argnums=(0, 3))
sent.defvjp(
    lambda exchange, x, table, way: (exchange.send(x, table, way), table),
    lambda exchange, way, table, grad: (exchange.fetch(grad, table, way), None),
)
fetched.defvjp(
    lambda exchange, y, table, way: (exchange.fetch(y, table, way), table),
    lambda exchange, way, table, grad: (exchange.send(grad, table, way), None),
)


def _own(
    table: Int[Array, "from to"], way: Way
) -> tuple[Int[Array, "to"], Int[Array, "to"]]:
    """How many rows this device has for each, and where among its own they begin."""
    sizes = table[jax.lax.axis_index(way.axes)]
    return sizes, jnp.cumsum(sizes, dtype=sizes.dtype) - sizes
