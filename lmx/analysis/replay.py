"""Replays steps of a run, and compares them with the logged metrics."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from tqdm import tqdm

from lmx.analysis.history import RecordedRun
from lmx.run.run_dir import encode_non_finite
from lmx.train.hooks.log import to_python
from lmx.train.step import Metrics, TrainState

Scalar = int | float | str
Scalars = Mapping[str, Scalar]  # by name; a list has one for each element, as in `x/0`


@dataclass(frozen=True)
class Replay:
    """The steps after `start_step` up to `step`, as logged and as replayed.

    Attributes:
        logged: the metrics of the steps that were logged.
        replayed: the metrics of the same steps now, and of `step` in any case.
    """

    start_step: int
    step: int
    logged: Mapping[int, Scalars]
    replayed: Mapping[int, Scalars]

    @property
    def num_compared(self) -> int:
        """The number of logged values that were compared."""
        return sum(map(len, self.logged.values()))

    @property
    def differences(self) -> list[tuple[int, str, Scalar, Scalar]]:
        """Values that differ in any bit: step, name, logged and replayed value."""
        return [
            (step, name, value, self.replayed[step][name])
            for step, values in self.logged.items()
            for name, value in values.items()
            if value != self.replayed[step][name]
        ]


def replay(recorded: RecordedRun, step: int) -> Replay:
    """Trains again from the newest state before that step to the end of the step.

    Metrics of time and of hooks are not compared. On the machine and mesh of the run,
    without overrides, every value is the same to the bit.
    """
    state, logged = recorded.restore_before(step), recorded.logged_metrics
    start = int(state.step)
    steps = sorted(n for n in logged if start < n <= step)
    _, replayed = measure_steps(recorded, state, step, {*steps, step})
    rows = {
        n: {k: v for k, v in flatten(logged[n]).items() if k in replayed[n]}
        for n in steps
    }
    return Replay(start, step, rows, replayed)


def measure_steps(
    recorded: RecordedRun, state: TrainState, last: int, steps: Collection[int]
) -> tuple[TrainState, dict[int, Scalars]]:
    """Trains up to step `last`; returns the state, and the metrics of these steps."""
    measured: dict[int, Scalars] = {}
    total = last - int(state.step)
    with tqdm(total=total, desc="replay", leave=False, disable=None) as bar:

        def measure(done: int, state: TrainState, metrics: Metrics) -> None:
            del state
            jax.block_until_ready(metrics)  # at most one step is in flight
            bar.update()
            if done in steps:
                values = {
                    k: encode_non_finite(to_python(v)) for k, v in metrics.items()
                }
                measured[done] = flatten(values)

        return recorded.advance(state, last, measure), measured


def flatten(row: Mapping[str, Any]) -> Scalars:
    """A row of metrics with one name for each element of a list."""
    scalars: dict[str, Scalar] = {}
    for name, value in row.items():
        if isinstance(value, list):
            scalars |= {f"{name}/{index}": item for index, item in enumerate(value)}
        else:
            scalars[name] = value
    return scalars
