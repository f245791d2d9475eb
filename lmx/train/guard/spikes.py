"""Losses far above their running mean, and steps that are left out for it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from lmx.config.registry import ConfigError, configurable
from lmx.run.run_dir import RunDir
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.diloco import TrainStepFn
from lmx.train.guard.guard import SPIKE, Guard, Init, MetricWatcher
from lmx.train.guard.nonfinite import make_skip_watcher, select_state
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState


class RunningStats(NamedTuple):
    """The losses of steps that were no spikes, the last of them weighing most."""

    count: Int[Array, ""]
    mean: Float[Array, ""]
    variance: Float[Array, ""]


class SpikeState(NamedTuple):
    """The losses a run has seen, beside what its optimizer keeps."""

    opt_state: PyTree
    stats: RunningStats


@configurable
@dataclass(frozen=True, kw_only=True)
class SpikeDetector:
    """What is taken for a spike: a loss so far above the running mean.

    The mean and the deviation are those of all losses before, until there are `window`
    of them; from then on older ones fade, each step by 1 / window. No loss is a spike
    before. A loss or gradient that is not finite always is one.

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
        """Makes the state of step 0, when nothing was seen."""

        def begin() -> TrainState:
            state = init()
            seen = RunningStats(jnp.zeros((), "int32"), jnp.zeros(()), jnp.zeros(()))
            return state._replace(opt_state=SpikeState(state.opt_state, seen))

        return begin

    def run_step(
        self, step_fn: TrainStepFn, recipe: Any, state: TrainState, *rows: Any
    ) -> tuple[TrainState, Metrics]:
        """A step, and by the metric `sigmas` how far its loss was from the mean."""
        opt_state, seen = state.opt_state
        after, metrics = step_fn(recipe, state._replace(opt_state=opt_state), *rows)
        faulty, sigmas, seen = self.detect(seen, metrics["loss"], metrics["grad_norm"])
        after = after._replace(opt_state=SpikeState(after.opt_state, seen))
        return after, metrics | {"sigmas": sigmas, SPIKE: faulty.astype("float32")}

    def detect(
        self, stats: RunningStats, loss: Float[Array, ""], grad_norm: Float[Array, ""]
    ) -> tuple[Bool[Array, ""], Float[Array, ""], RunningStats]:
        """Whether it is a spike, by how much, and what was seen then."""
        above = loss - stats.mean
        sigmas = above / jnp.sqrt(jnp.maximum(stats.variance, 1e-30))
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        known = stats.count >= self.window
        faulty = ~finite | known & (sigmas > self.sigma)
        share = 1 / jnp.minimum(stats.count + 1, self.window).astype(stats.mean.dtype)
        fresh = RunningStats(
            stats.count + 1,
            (stats.mean + share * above).astype(stats.mean.dtype),
            ((1 - share) * (stats.variance + share * above**2)).astype(
                stats.mean.dtype
            ),
        )
        stats = jax.tree.map(lambda old, new: jnp.where(faulty, old, new), stats, fresh)
        return faulty, jnp.where(known, sigmas, 0.0), stats


@configurable
@dataclass(frozen=True, kw_only=True)
class SkipSpikes(Guard):
    """Leaves a step out whose loss is far above those before, as `SkipNonFinite` does.

    What was seen is a part of the state: a run that was stopped decides the same.

    Attributes:
        most: steps in a row; one more ends the run.
    """

    detector: SpikeDetector = SpikeDetector()
    max_consecutive: int = 10

    def __post_init__(self):
        if self.max_consecutive < 1:
            raise ConfigError("SkipSpikes.max_consecutive must be 1 or more.")

    def wrap_init(self, init: Init) -> Init:
        return self.detector.wrap_init(init)

    def wrap_step(self, step_fn: TrainStepFn) -> TrainStepFn:
        def careful(recipe: Any, state: TrainState, *rows: Any) -> Any:
            after, metrics = self.detector.run_step(step_fn, recipe, state, *rows)
            return select_state(metrics[SPIKE] > 0, after, state, metrics)

        return careful

    def start(
        self, run: RunContext, directory: RunDir, checkpoints: CheckpointManager
    ) -> MetricWatcher:
        return make_skip_watcher(self.max_consecutive, run, directory, checkpoints)
