"""Learning rates as functions of the step."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from lmx.config.registry import ConfigError, configurable


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """A linear warm-up to `peak`, then what a kind of schedule makes of the rest."""

    peak_lr: float  # the largest learning rate
    warmup_steps: int = 0  # steps

    def build(self, steps: int) -> optax.Schedule:
        """The rate of each of `steps` updates, counted from 0."""
        if self.warmup_steps >= steps:
            raise ConfigError(
                f"a warm-up of {self.warmup_steps} steps leaves nothing of {steps} to train:"
                f" {type(self).__name__}.warmup_steps must be below Experiment.steps."
            )

        def rate(count: Any) -> Any:
            rising = (count + 1) / (self.warmup_steps + 1)
            progress = (count - self.warmup_steps) / (steps - self.warmup_steps)
            left = self.scale(jnp.maximum(progress, 0.0))
            return self.peak_lr * jnp.minimum(rising, left)

        return rate

    @abstractmethod
    def scale(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        """What is left of the peak at `progress`, from 0 after warm-up to 1."""


@configurable
@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The peak, to the end."""

    def scale(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.ones_like(progress)


@configurable
@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine down to `final_fraction` of the peak. Loshchilov and Hutter, 1608.03983."""

    final_fraction: float = 0.1

    def scale(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (
            1 + jnp.cos(jnp.pi * progress)
        )


@configurable
@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """A straight line down to `final_fraction` of the peak."""

    final_fraction: float = 0.0

    def scale(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        return 1 - (1 - self.final_fraction) * progress


@configurable
@dataclass(frozen=True, kw_only=True)
class WSD(Schedule):
    """Warm-up, stable, decay: the peak, then a line to `final_fraction` over the last `decay`.

    Hu et al. 2024, arXiv:2404.06395, section 4.
    """

    decay_fraction: float = 0.2  # the share of the steps after warm-up
    final_fraction: float = 0.0

    def __post_init__(self):
        if not 0 < self.decay_fraction <= 1:
            raise ConfigError(
                f"WSD.decay_fraction is a share of the steps, not {self.decay_fraction}."
            )

    def scale(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        left = jnp.minimum((1 - progress) / self.decay_fraction, 1.0)
        return self.final_fraction + (1 - self.final_fraction) * left
