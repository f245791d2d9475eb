"""Learning rates as functions of the step."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from lmx.config.names import ConfigError, configurable


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """A linear warm-up to `peak`, then what a kind of schedule makes of the rest."""

    peak: float  # the largest learning rate
    warmup: int = 0  # steps

    def over(self, steps: int) -> optax.Schedule:
        """The rate of each of `steps` updates, counted from 0."""
        if self.warmup >= steps:
            raise ConfigError(
                f"a warm-up of {self.warmup} steps leaves nothing of {steps} to train:"
                f" {type(self).__name__}.warmup must be below Experiment.steps."
            )

        def rate(count: Any) -> Any:
            rising = (count + 1) / (self.warmup + 1)
            progress = (count - self.warmup) / (steps - self.warmup)
            left = self.share(jnp.maximum(progress, 0.0))
            return self.peak * jnp.minimum(rising, left)

        return rate

    @abstractmethod
    def share(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        """What is left of the peak at `progress`, from 0 after warm-up to 1."""


@configurable
@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The peak, to the end."""

    def share(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.ones_like(progress)


@configurable
@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine down to `floor` of the peak. Loshchilov and Hutter, 1608.03983."""

    floor: float = 0.1

    def share(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        return self.floor + (1 - self.floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


@configurable
@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """A straight line down to `floor` of the peak."""

    floor: float = 0.0

    def share(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        return 1 - (1 - self.floor) * progress


@configurable
@dataclass(frozen=True, kw_only=True)
class WSD(Schedule):
    """Warm-up, stable, decay: the peak, then a line to `floor` over the last `decay`.

    Hu et al. 2024, arXiv:2404.06395, section 4.
    """

    decay: float = 0.2  # the share of the steps after warm-up
    floor: float = 0.0

    def __post_init__(self):
        if not 0 < self.decay <= 1:
            raise ConfigError(f"WSD.decay is a share of the steps, not {self.decay}.")

    def share(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        left = jnp.minimum((1 - progress) / self.decay, 1.0)
        return self.floor + (1 - self.floor) * left
