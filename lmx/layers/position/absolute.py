"""Absolute positions, added to the token embedding."""

from abc import abstractmethod

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lmx.config.registry import configurable, require
from lmx.layers.init import Init


class AbsolutePosition(nnx.Module):
    """Base class of schemes with one vector per position.

    Attributes:
        max_length: number of positions; None: unlimited.
    """

    max_length: int | None = None

    @abstractmethod
    def __call__(self, positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The vector to add to the embedding of each token."""


@configurable
class LearnedPosition(AbsolutePosition):
    """One learned vector per position. Radford et al. 2018 (GPT), section 3.1."""

    def __init__(self, width: int, init: Init, *, max_length: int):
        sizes = dict(T=max_length, D=width)
        self.table = init.weight("TD", sizes, in_dims="T", role="embed")
        self.max_length = max_length

    def __call__(self, positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        T, limit = positions.shape[1], self.table.shape[0]
        require(
            T <= limit,
            f"{T} tokens exceed {limit} learned positions: set"
            f" LearnedPosition.max_length to {T} or more, or use fewer tokens.",
        )
        return self.table[...][positions]


@configurable
class SinusoidalPosition(AbsolutePosition):
    """Sines, then cosines, of wavelengths 2 pi to 2 pi * theta tokens.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """

    def __init__(self, width: int, init: Init, *, theta: float = 10_000.0):
        require(width % 2 == 0, f"sines and cosines need an even width, not {width}.")
        self.width, self.theta = width, theta

    def __call__(self, positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        frequency_P = self.theta ** (-jnp.arange(0, self.width, 2) / self.width)
        angle_BTP = positions[:, :, None] * frequency_P[None, None]
        return jnp.concatenate([jnp.sin(angle_BTP), jnp.cos(angle_BTP)], axis=-1)
