"""Losses far above their running mean, and steps that are left out for it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from lmx.config.names import ConfigError, configurable
from lmx.train.checkpoint.checkpoints import Checkpoints
from lmx.train.guard.guard import SPIKE, Guard, Init, Watch
from lmx.train.guard.numbers import skipping, unless
from lmx.train.optim.outer import Take
from lmx.train.record.directory import Directory
from lmx.train.run import Run
from lmx.train.step import Metrics, TrainState


class Seen(NamedTuple):
    """The losses of steps that were no spikes, the last of them weighing most."""

    count: Int[Array, ""]
    mean: Float[Array, ""]
    variance: Float[Array, ""]


class Heard(NamedTuple):
    """The losses a run has seen, beside what its optimizer keeps."""

    opt_state: PyTree
    seen: Seen


@configurable
@dataclass(frozen=True, kw_only=True)
class Spikes:
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
            raise ConfigError("Spikes.sigma must be above 0 and Spikes.window above 1.")

    def begin(self, init: Init) -> Init:
        """Makes the state of step 0, when nothing was seen."""

        def begin() -> TrainState:
            state = init()
            seen = Seen(jnp.zeros((), "int32"), jnp.zeros(()), jnp.zeros(()))
            return state._replace(opt_state=Heard(state.opt_state, seen))

        return begin

    def hear(
        self, take: Take, recipe: Any, state: TrainState, *rows: Any
    ) -> tuple[TrainState, Metrics]:
        """A step, and by the metric `sigmas` how far its loss was from the mean."""
        opt_state, seen = state.opt_state
        after, metrics = take(recipe, state._replace(opt_state=opt_state), *rows)
        faulty, sigmas, seen = self.judge(seen, metrics["loss"], metrics["grad_norm"])
        after = after._replace(opt_state=Heard(after.opt_state, seen))
        return after, metrics | {"sigmas": sigmas, SPIKE: faulty.astype("float32")}

    def judge(
        self, seen: Seen, loss: Float[Array, ""], grad_norm: Float[Array, ""]
    ) -> tuple[Bool[Array, ""], Float[Array, ""], Seen]:
        """Whether it is a spike, by how much, and what was seen then."""
        above = loss - seen.mean
        sigmas = above / jnp.sqrt(jnp.maximum(seen.variance, 1e-30))
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        known = seen.count >= self.window
        faulty = ~finite | known & (sigmas > self.sigma)
        share = 1 / jnp.minimum(seen.count + 1, self.window).astype(seen.mean.dtype)
        fresh = Seen(
            seen.count + 1,
            (seen.mean + share * above).astype(seen.mean.dtype),
            ((1 - share) * (seen.variance + share * above**2)).astype(seen.mean.dtype),
        )
        seen = jax.tree.map(lambda old, new: jnp.where(faulty, old, new), seen, fresh)
        return faulty, jnp.where(known, sigmas, 0.0), seen


@configurable
@dataclass(frozen=True, kw_only=True)
class SkipSpikes(Guard):
    """Leaves a step out whose loss is far above those before, as `Skip` does.

    What was seen is a part of the state: a run that was stopped decides the same.

    Attributes:
        most: steps in a row; one more ends the run.
    """

    spikes: Spikes = Spikes()
    most: int = 10

    def __post_init__(self):
        if self.most < 1:
            raise ConfigError("SkipSpikes.most must be 1 or more.")

    def init(self, init: Init) -> Init:
        return self.spikes.begin(init)

    def step(self, take: Take) -> Take:
        def careful(recipe: Any, state: TrainState, *rows: Any) -> Any:
            after, metrics = self.spikes.hear(take, recipe, state, *rows)
            return unless(metrics[SPIKE] > 0, after, state, metrics)

        return careful

    def start(self, run: Run, directory: Directory, checkpoints: Checkpoints) -> Watch:
        return skipping(self.most, run, directory, checkpoints)
