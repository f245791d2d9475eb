"""Loss spike detection, and a guard that skips spikes."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from lmx.config.registry import ConfigError, configurable
from lmx.train.guard.guard import SPIKE, Init
from lmx.train.guard.nonfinite import SkipNonFinite, select_state
from lmx.train.step import Metrics, TrainState, TrainStepFn


class RunningStats(NamedTuple):
    """Running mean and variance of the losses that are not spikes."""

    count: Int[Array, ""]
    mean: Float[Array, ""]
    variance: Float[Array, ""]


class SpikeState(NamedTuple):
    """The state of an optimizer, and statistics of losses."""

    opt_state: PyTree
    stats: RunningStats


@configurable
@dataclass(frozen=True, kw_only=True)
class SpikeDetector:
    """Detects losses far above their running mean.

    Mean and standard deviation are those of all earlier losses, up to `window` of
    them; then older losses decay by 1 / window a step. No loss is a spike before that,
    unless it or its gradient is not finite.

    Attributes:
        sigma: standard deviations above the mean.
        window: steps.
    """

    sigma: float = 6.0
    window: int = 100

    def __post_init__(self):
        if self.sigma <= 0 or self.window < 2:
            raise ConfigError(
                "SpikeDetector.sigma must be above 0 and SpikeDetector.window above 1."
            )

    def wrap_init(self, init: Init) -> Init:
        """Adds empty statistics to the state of step 0."""

        def init_with_stats() -> TrainState:
            state = init()
            stats = RunningStats(jnp.zeros((), "int32"), jnp.zeros(()), jnp.zeros(()))
            return state._replace(opt_state=SpikeState(state.opt_state, stats))

        return init_with_stats

    def run_step(
        self, step_fn: TrainStepFn, config: Any, state: TrainState, *rows: Any
    ) -> tuple[TrainState, Metrics]:
        """A step, with the metrics `spike` and `sigmas`, the loss's distance."""
        opt_state, stats = state.opt_state
        new, metrics = step_fn(config, state._replace(opt_state=opt_state), *rows)
        spike, sigmas, stats = self.detect(stats, metrics["loss"], metrics["grad_norm"])
        new = new._replace(opt_state=SpikeState(new.opt_state, stats))
        return new, metrics | {"sigmas": sigmas, SPIKE: spike.astype("float32")}

    def detect(
        self, stats: RunningStats, loss: Float[Array, ""], grad_norm: Float[Array, ""]
    ) -> tuple[Bool[Array, ""], Float[Array, ""], RunningStats]:
        """Whether the loss is a spike, its distance in sigmas, and new statistics."""
        above = loss - stats.mean
        sigmas = above / jnp.sqrt(jnp.maximum(stats.variance, 1e-30))
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        known = stats.count >= self.window
        spike = ~finite | known & (sigmas > self.sigma)
        share = 1 / jnp.minimum(stats.count + 1, self.window).astype(stats.mean.dtype)
        new = RunningStats(
            stats.count + 1,
            (stats.mean + share * above).astype(stats.mean.dtype),
            ((1 - share) * (stats.variance + share * above**2)).astype(
                stats.mean.dtype
            ),
        )
        stats = jax.tree.map(lambda old, new: jnp.where(spike, old, new), stats, new)
        return spike, jnp.where(known, sigmas, 0.0), stats


@configurable
@dataclass(frozen=True, kw_only=True)
class SkipSpikes(SkipNonFinite):
    """Skips the update of a step whose loss is a spike, as `SkipNonFinite` does.

    The statistics of losses are part of the state, so a resumed run decides the same.
    """

    detector: SpikeDetector = SpikeDetector()

    def wrap_init(self, init: Init) -> Init:
        return self.detector.wrap_init(init)

    def wrap_step(self, step_fn: TrainStepFn) -> TrainStepFn:
        def step(config: Any, state: TrainState, *rows: Any) -> Any:
            new, metrics = self.detector.run_step(step_fn, config, state, *rows)
            return select_state(metrics[SPIKE] > 0, new, state, metrics)

        return step
