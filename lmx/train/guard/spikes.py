"""Loss spikes: detection, and guards that skip them or rewind the run."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from lmx.config.registry import NonNegative, Positive, at_least, configurable, require
from lmx.core import distributed
from lmx.data.schedule import BatchSchedule
from lmx.run.run_dir import RunDir, read_ledger
from lmx.train.checkpoint.policy import CheckpointPolicy
from lmx.train.guard.nonfinite import (
    REWIND,
    SPIKE,
    Guard,
    GuardContext,
    Init,
    MetricCheck,
    SkipNonFinite,
    find_nonfinite,
    load_skipped,
    select_state,
    to_data_step,
)
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

    Mean and standard deviation are of all earlier losses; after `window` of them, older
    losses decay by 1 / window a step. Before that, only a loss or a gradient that is
    not finite is a spike.

    Attributes:
        sigma: standard deviations above the mean.
        window: steps.
    """

    sigma: Positive[float] = 6.0
    window: Annotated[int, at_least(2)] = 100

    def wrap_init(self, init: Init) -> Init:
        """Adds empty statistics to the state of step 0."""

        def init_with_stats(*weights: Any) -> TrainState:
            state = init(*weights)
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
            stats.mean + share * above,
            (1 - share) * (stats.variance + share * above**2),
        )
        stats = jax.tree.map(
            lambda old, new: jnp.where(spike, old, new.astype(old.dtype)), stats, new
        )
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


class RewindError(Exception):
    """Newer checkpoints were deleted; the run resumes from an older one."""


@configurable
@dataclass(frozen=True, kw_only=True)
class Rewind(Guard):
    """Rewinds to a checkpoint before a loss spike, and skips the data seen since.

    The ledger records what is skipped. The run ends if the loss spikes again at or
    before the step of the last spike: other data did not help. Chowdhery et al. 2022,
    arXiv:2204.02311, section 5.1.

    Attributes:
        steps_back: steps between the checkpoint and the spike, at least.
        skip_beyond: data steps that are skipped after the spike.
    """

    detector: SpikeDetector = SpikeDetector()
    steps_back: Positive[int] = 100
    skip_beyond: NonNegative[int] = 100

    def check(self, schedule: BatchSchedule, checkpoint: CheckpointPolicy) -> None:
        require(
            len(schedule.stages) <= 1,
            "@Rewind() gives a step the data of a later one, which does not work"
            " if batch size or length change with the step: remove one of the two.",
        )
        require(
            (checkpoint.keep - 1) * checkpoint.every >= self.steps_back,
            f"Rewind.steps_back is {self.steps_back}, and CheckpointPolicy keeps"
            f" {checkpoint.keep} checkpoints, {checkpoint.every} steps apart:"
            " (CheckpointPolicy.keep - 1) * CheckpointPolicy.every must be at"
            " least Rewind.steps_back.",
        )

    def wrap_init(self, init: Init) -> Init:
        return self.detector.wrap_init(init)

    def wrap_step(self, step_fn: TrainStepFn) -> TrainStepFn:
        return partial(self.detector.run_step, step_fn)

    def build(self, context: GuardContext) -> MetricCheck:
        checkpoints, run_dir = context.checkpoints, context.run_dir

        def check(step: int, values: Mapping[str, float]) -> None:
            if not values[SPIKE] and not find_nonfinite(values):
                return
            checkpoints.wait()
            steps = checkpoints.list_steps()
            to = self._choose_checkpoint(steps, checkpoints.keep, step)
            furthest = distributed.broadcast_from_leader(lambda: _last_spike(run_dir))
            if to is None or step <= furthest:
                raise context.make_fault(step, values)
            self._rewind(context, to, step)

        return check

    def _choose_checkpoint(self, steps: list[int], keep: int, spike: int) -> int | None:
        """The newest step that is early enough; None if its checkpoint was deleted."""
        initial = [0] if len(steps) < keep else []  # no checkpoint was deleted yet
        early = [step for step in steps if step <= spike - self.steps_back]
        return max([*initial, *early], default=None)

    def _rewind(self, context: GuardContext, to: int, spike: int) -> None:
        """Deletes newer checkpoints. If killed here, a run does this again."""
        skipped = load_skipped(context.run_dir.path)
        begin = to_data_step(skipped, to)
        end = to_data_step(skipped, spike - 1) + 1 + self.skip_beyond
        for step in context.checkpoints.list_steps()[::-1]:
            if step > to:
                context.checkpoints.delete(step)
        facts = {"spike_step": spike, "data": [begin, end]}
        context.run_dir.record_hook(to, REWIND, "done", **facts)
        raise RewindError(
            f"step {spike} is a spike: rewinding to step {to}, and skipping the data of"
            f" steps {begin} to {end - 1}"
        )


def _last_spike(run_dir: RunDir) -> int:
    """The last step so far that caused a rewind; 0 for none."""
    rows = read_ledger(run_dir.path)
    return max((row["spike_step"] for row in rows if row["hook"] == REWIND), default=0)
