"""Positions that are added to the embedding of a token."""

from abc import abstractmethod

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lmx.config.registry import configurable
from lmx.layers.init import Init


class AbsolutePosition(nnx.Module):
    """Anything that has a vector for each position.

    Attributes:
        limit: how many positions there are; None: as many as one likes.
    """

    max_length: int | None = None

    @abstractmethod
    def __call__(self, positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """What is added to the embedding of each token."""


@configurable
class LearnedPosition(AbsolutePosition):
    """One learned vector per position. Radford et al. 2018 (GPT), section 3.1."""

    def __init__(self, width: int, init: Init, *, max_length: int):
        self.table = init.weight(
            "TD", dict(T=max_length, D=width), in_dims="T", role="embed"
        )
        self.max_length = max_length

    def __call__(self, positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        length, T = self.table.shape[0], positions.shape[1]
        if T > length:
            raise ValueError(
                f"{T} tokens do not fit {length} learned positions: set LearnedPosition.max_length"
                f" to {T} or more, or read fewer tokens."
            )
        return self.table[...][positions]


@configurable
class SinusoidalPosition(AbsolutePosition):
    """Sines, then cosines, of wavelengths 2 pi to 2 pi * base tokens.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """

    def __init__(self, width: int, init: Init, *, theta: float = 10_000.0):
        del init
        if width % 2:
            raise ValueError(f"sines and cosines cannot fill an odd width of {width}.")
        self.width, self.theta = width, theta

    def __call__(self, positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        speed_P = self.theta ** (-jnp.arange(0, self.width, 2) / self.width)
        angle_BTP = positions[:, :, None] * speed_P[None, None]
        return jnp.concatenate([jnp.sin(angle_BTP), jnp.cos(angle_BTP)], axis=-1)
