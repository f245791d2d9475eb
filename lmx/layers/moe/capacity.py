"""Experts with room for some of the tokens that chose them: the others go without."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from lmx.config.registry import ConfigError, configurable
from lmx.core.mean import Aux, Mean
from lmx.layers.moe.experts import Experts
from lmx.layers.moe.loss import count_choices
from lmx.layers.moe.router import Routing


def compute_capacities(tokens: int, fraction: float) -> Int[np.ndarray, "counts"]:
    """The most tokens an expert takes of a row of 0, 1, ... `tokens` live ones."""
    rounding = 1e-9  # of n * share, which makes no room
    return np.array([math.ceil(n * fraction - rounding) for n in range(tokens + 1)])


@configurable
@dataclass(frozen=True, kw_only=True)
class CapacityDispatch:
    """An expert takes the first of a row's tokens that chose it; others go without.

    It has room for `factor` times its even share of the row's live tokens. Tells the
    share of choices that were dropped. Lepikhin et al. 2020, arXiv:2006.16668; Fedus
    et al. 2021, arXiv:2101.03961, section 2.2.
    """

    capacity_factor: float = 1.25

    def __post_init__(self):
        if self.capacity_factor <= 0:
            raise ConfigError(
                f"CapacityDispatch.capacity_factor is {self.capacity_factor}: it must be above 0."
            )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        unpadded: Bool[Array, "B T"],
        routing: Routing,
        experts: Experts,
    ) -> tuple[Float[Array, "B T D"], Aux]:
        """The weighted sums of answers, and "dropped"."""
        B, T, C = routing.experts.shape
        weights = experts.cast_weights(x.dtype)
        E = len(weights["gate"])
        room = np.minimum(compute_capacities(T, self.capacity_factor * C / E), T)
        slots, kept_BTC = _assign_slots(routing.experts, unpadded, room, E)
        rows = jnp.broadcast_to(jnp.arange(B)[:, None], slots.shape)
        sources = jnp.full((B, E * room[-1]), T * C)
        sources = sources.at[rows, slots].set(jnp.arange(T * C), mode="drop")
        x_BMD = _gather_rows(repeat_for_choices(x, C), sources)
        x_EMD = rearrange(x_BMD, "B (E M) D -> E (B M) D", E=E)
        y_EMD = experts.apply_experts(x_EMD, jnp.matmul, weights)
        y_BMD = rearrange(y_EMD, "E (B M) D -> B (E M) D", B=B)
        y_BTCD = _gather_rows(y_BMD, slots).reshape(B, T, C, -1)
        choices = unpadded.sum().astype(routing.weights.dtype) * C
        dropped = Mean(choices - kept_BTC.sum(), choices)
        return weighted_sum(y_BTCD, routing.weights), {"dropped": dropped}


def _assign_slots(
    experts: Int[Array, "B T C"],
    unpadded: Bool[Array, "B T"],
    capacities: Int[np.ndarray, "counts"],
    count: int,
) -> Any:
    """Where each choice of a row stands among the slots of all experts, if it does.

    One that does not stands behind the last.
    """
    ahead_BTE = jnp.cumsum(count_choices(experts, count, unpadded), axis=1)
    place_BTC = jnp.take_along_axis(ahead_BTE, experts, axis=-1) - 1
    room_B = jnp.asarray(capacities)[unpadded.sum(axis=1)]
    kept_BTC = (place_BTC < room_B[:, None, None]) & unpadded[:, :, None]
    slots_BTC = jnp.where(
        kept_BTC, experts * capacities[-1] + place_BTC, count * capacities[-1]
    )
    return rearrange(slots_BTC, "B T C -> B (T C)"), kept_BTC


def repeat_for_choices(x: Float[Array, "B T D"], choices: int) -> Float[Array, "B M D"]:
    """Every token as often as it chooses.

    Indexed once each, so that the gradient is an ordered sum: the same on any device.
    """
    return jnp.repeat(x, choices, axis=1)


def _gather_rows(
    rows: Float[Array, "B M D"], at: Int[Array, "B slots"]
) -> Float[Array, "B slots D"]:
    """The rows at these places; 0 for a place behind the last."""
    return jnp.take_along_axis(rows, at[:, :, None], 1, mode="fill", fill_value=0)


def weighted_sum(
    y: Float[Array, "B T C D"], weights: Float[Array, "B T C"]
) -> Float[Array, "B T D"]:
    """The weighted sum of each token's answers, always in the same order."""
    return jnp.einsum("BTCD,BTC->BTD", y, weights.astype(y.dtype))
