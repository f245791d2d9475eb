"""Steps of a run once more, beside what was logged of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from tqdm import tqdm

from lmx.analysis.history import RecordedRun
from lmx.run.run_dir import encode_non_finite
from lmx.train.hooks.log import to_python
from lmx.train.step import Metrics, TrainState

Scalar = int | float | str
Scalars = Mapping[str, Scalar]  # by name; a list is one number for each element


@dataclass(frozen=True)
class Replay:
    """The steps after `begun` up to `step`, as they were and as they are now.

    Attributes:
        logged: what metrics.jsonl has of the steps of which it has a line.
        found: what they measure now; `step` always.
    """

    start_step: int
    step: int
    logged: Mapping[int, Scalars]
    replayed: Mapping[int, Scalars]

    @property
    def num_compared(self) -> int:
        """How many logged numbers there were to compare with."""
        return sum(len(numbers) for numbers in self.logged.values())

    @property
    def differences(self) -> list[tuple[int, str, Scalar, Scalar]]:
        """Each number that is not the same to the bit: step, name, logged and found."""
        return [
            (step, name, was, self.replayed[step][name])
            for step, numbers in self.logged.items()
            for name, was in numbers.items()
            if was != self.replayed[step][name]
        ]


def replay(past: RecordedRun, step: int) -> Replay:
    """Runs from the nearest state on disk to that step.

    What a clock or a hook measured is not compared. On the machine and mesh of the
    run, and with nothing bound, every number is the same to the bit.
    """
    past.check_step(step)
    state = past.restore_at_or_before(step - 1)
    begun, found = int(state.step), {}
    wanted = {n for n in past.logged_metrics if begun < n <= step} | {step}
    with tqdm(total=step - begun, desc="replay", leave=False, disable=None) as bar:

        def keep(done: int, state: TrainState, metrics: Metrics) -> None:
            del state
            jax.block_until_ready(metrics)  # no more than one step is on its way
            bar.update()
            if done in wanted:
                found[done] = to_scalars(metrics)

        past.advance(state, step, keep)
    logged = {
        n: {name: past_value for name, past_value in flatten(past.logged_metrics[n]).items()
            if name in found[n]}
        for n in sorted(wanted & past.logged_metrics.keys())
    }  # fmt: skip
    return Replay(begun, step, logged, found)


def to_scalars(metrics: Metrics) -> Scalars:
    """Metrics of a step as a line of metrics.jsonl would have them."""
    return flatten(
        {name: encode_non_finite(to_python(value)) for name, value in metrics.items()}
    )


def flatten(row: Mapping[str, Any]) -> Scalars:
    """A line of metrics with a name for each element of a list, as in `x/0`."""
    found: dict[str, Scalar] = {}
    for name, value in row.items():
        if isinstance(value, list):
            found |= {f"{name}/{index}": item for index, item in enumerate(value)}
        else:
            found[name] = value
    return found
