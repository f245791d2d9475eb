"""The training loop. It fits on one screen; keep it so."""

from collections.abc import Callable, Iterator, Sequence

from lmx.core.batch import Batch
from lmx.train.step import Metrics, TrainState

StepFn = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
StepCallback = Callable[
    [int, TrainState, Metrics], None
]  # logs, saves, evaluates, profiles


def train(
    step_fn: StepFn,
    state: TrainState,
    batches: Iterator[Batch],
    *,
    steps: int,
    hooks: Sequence[StepCallback] = (),
) -> TrainState:
    """Trains from the step that `state` has reached until `steps` are done.

    `batches` begins with the batch of that step. Hooks are told how many steps are
    done. Metrics stay on their device until a hook reads them; a hook that does not
    read them does not wait.
    """
    for done in range(int(state.step) + 1, steps + 1):
        state, metrics = step_fn(state, next(batches))
        for hook in hooks:
            hook(done, state, metrics)
    return state
