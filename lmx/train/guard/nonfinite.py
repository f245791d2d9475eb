"""Guards against non-finite losses and gradients: abort the run, or skip the step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from lmx.config.registry import ConfigError, configurable
from lmx.core import distributed
from lmx.core.console import print_line
from lmx.train.guard.guard import (
    SKIPPED,
    Guard,
    GuardContext,
    MetricCheck,
    find_nonfinite,
)
from lmx.train.step import Metrics, TrainState, TrainStepFn


@configurable
@dataclass(frozen=True, kw_only=True)
class AbortOnNonFinite(Guard):
    """Ends the run at a non-finite number, before such a state is saved.

    Checks the loss and the norms of gradient, update and parameters; a norm that
    overflows counts as infinite.
    """

    def build(self, context: GuardContext) -> MetricCheck:
        def check(step: int, values: Mapping[str, float]) -> None:
            if find_nonfinite(values):
                raise context.make_fault(step, values)

        return check


@configurable
@dataclass(frozen=True, kw_only=True)
class SkipNonFinite(Guard):
    """Skips the update of a step with a non-finite loss or gradient.

    Parameters and optimizer state stay the same to the bit; the step counts as done,
    and its data are not used again. Its metric `skipped` is 1, and it is recorded in
    the ledger. Replicas of `DiLoCo` skip independently. A run that `AbortOnNonFinite`
    ended can resume with this guard.

    Attributes:
        max_consecutive: steps in a row; one more ends the run.
    """

    max_consecutive: int = 10

    def __post_init__(self):
        if self.max_consecutive < 1:
            name = f"{type(self).__name__}.max_consecutive"
            raise ConfigError(f"{name} must be 1 or more.")

    def wrap_step(self, step_fn: TrainStepFn) -> TrainStepFn:
        def step(config: Any, state: TrainState, *rows: Any) -> Any:
            new, metrics = step_fn(config, state, *rows)
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            return select_state(~finite, new, state, metrics)

        return step

    def build(self, context: GuardContext) -> MetricCheck:
        consecutive = 0

        def check(step: int, values: Mapping[str, float]) -> None:
            nonlocal consecutive
            consecutive = consecutive + 1 if values[SKIPPED] else 0
            if consecutive > self.max_consecutive or (
                find_nonfinite(values) and not consecutive
            ):
                raise context.make_fault(step, values)
            if not consecutive:
                return
            shown = {name: f"{value:g}" for name, value in values.items()}
            context.record(step, "Skip", "done", **shown)
            if distributed.is_leader():
                print_line(
                    f"step {step} was skipped: its loss is {shown['loss']}, its"
                    f" gradient norm {shown['grad_norm']}"
                )

        return check


def select_state(
    skip: Bool[Array, ""], new: TrainState, old: TrainState, metrics: Metrics
) -> tuple[TrainState, Metrics]:
    """The new state, or the old one at the next step; adds the metric `skipped`."""
    kept = jax.tree.map(lambda new, old: jnp.where(skip, old, new), new, old)
    metrics = metrics | {SKIPPED: skip.astype("float32")}
    return kept._replace(step=new.step), metrics
