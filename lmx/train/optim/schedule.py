"""Learning rate schedules."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from lmx.config.registry import (
    Fraction,
    NonNegative,
    PositiveFraction,
    configurable,
    require,
)


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """Linear warmup to `peak_lr`, then a decay that the kind of schedule decides."""

    peak_lr: NonNegative[float]  # the largest learning rate
    warmup_steps: NonNegative[int] = 0  # steps

    def build(self, steps: int) -> optax.Schedule:
        """The learning rate of each of `steps` updates, counted from 0."""
        require(
            self.warmup_steps < steps,
            f"a warmup of {self.warmup_steps} steps leaves none of {steps}:"
            f" {type(self).__name__}.warmup_steps must be below Experiment.steps.",
        )

        def learning_rate(count: Any) -> Any:
            warmup = (count + 1) / (self.warmup_steps + 1)
            progress = (count - self.warmup_steps) / (steps - self.warmup_steps)
            decay = self.scale(jnp.maximum(progress, 0.0))
            return self.peak_lr * jnp.minimum(warmup, decay)

        return learning_rate

    @abstractmethod
    def scale(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        """The multiple of the peak at `progress`, from 0 after warmup to 1."""


@configurable
@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """Constant at the peak."""

    def scale(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.ones_like(progress)


@configurable
@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine to `final_fraction` of the peak. Loshchilov, Hutter, 1608.03983."""

    final_fraction: Fraction[float] = 0.1

    def scale(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (
            1 + jnp.cos(jnp.pi * progress)
        )


@configurable
@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """Linear decay to `final_fraction` of the peak."""

    final_fraction: Fraction[float] = 0.0

    def scale(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        return 1 - (1 - self.final_fraction) * progress


@configurable
@dataclass(frozen=True, kw_only=True)
class WSD(Schedule):
    """Warmup, stable, decay: constant, then linear decay to `final_fraction`.

    Hu et al. 2024, arXiv:2404.06395, section 4.
    """

    decay_fraction: PositiveFraction[float] = 0.2  # of the steps after warmup
    final_fraction: Fraction[float] = 0.0

    def find_decay(self, steps: int) -> int:
        """How many of `steps` updates have the peak rate, or that of the warmup."""
        stable = (1 - self.decay_fraction) * (steps - self.warmup_steps)
        return self.warmup_steps + math.floor(stable)

    def scale(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        left = jnp.minimum((1 - progress) / self.decay_fraction, 1.0)
        return self.final_fraction + (1 - self.final_fraction) * left
