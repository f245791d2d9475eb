"""The training loop. It fits on one screen; keep it so."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lmx.core.batch import AnyBatch
from lmx.train.step import Metrics, TrainState

StepFn = Callable[[TrainState, AnyBatch], tuple[TrainState, Metrics]]
StepCallback = Callable[[int, TrainState, Metrics], Any]


def train(
    step_fn: StepFn,
    state: TrainState,
    batches: Iterator[AnyBatch],
    *,
    steps: int,
    hooks: Sequence[StepCallback] = (),
) -> TrainState:
    """Trains from the step of `state` until `steps` are done.

    `batches` starts with the batch of that step. Hooks are called with the number of
    steps done. Metrics stay on their device until a hook reads them; only a hook that
    reads them waits for the step.
    """
    for step in range(int(state.step) + 1, steps + 1):
        state, metrics = step_fn(state, next(batches))
        for hook in hooks:
            hook(step, state, metrics)
    return state
