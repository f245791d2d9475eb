"""Points of a run at which a process is killed, sampled from a seed."""

import random
from dataclasses import dataclass

from lmx.train.experiment import Experiment

DESCRIPTIONS = {
    "step": "in step {step}, {delay:.0%} of a step's time after its start",
    "save requested": "before any file of checkpoint {step} is written",
    "save copied": "after the state of step {step} is copied off its devices",
    "first array": "after the first array file of checkpoint {step} is written",
    "before commit": "before the checkpoint of step {step} is committed",
    "after commit": "after the checkpoint of step {step} is committed",
    "before prune": "after the save of step {step}, before an old one is removed",
    "before hooks": "between the save of step {step} and the hooks of that step",
    "startup": "{delay:.2f} s after the command starts",
    "timer": "{delay:.2f} s after the first step",
}
(
    STEP,
    SAVE_REQUESTED,
    SAVE_COPIED,
    FIRST_ARRAY,
    BEFORE_COMMIT,
    AFTER_COMMIT,
    BEFORE_PRUNE,
    BEFORE_HOOKS,
    STARTUP,
    TIMER,
) = KINDS = tuple(DESCRIPTIONS)
TIMED = (STARTUP, TIMER)  # a run may finish before these


@dataclass(frozen=True)
class KillPoint:
    """When a process is killed."""

    kind: str  # one of KINDS
    step: int = 0  # that is not finished, or whose state is saved
    delay: float = 0.0  # seconds if timed; for `step` in units of a step's time

    def __str__(self):
        return DESCRIPTIONS[self.kind].format(step=self.step, delay=self.delay)


def sample_kills(seed: int, kills: int, experiment: Experiment) -> list[KillPoint]:
    """Kill points of all kinds in rotation, in the order in which a run reaches them.

    Each save is used for one kill at most. Where no save is left for a kind, the kill
    is in a step.
    """
    rng, steps, policy = random.Random(seed), experiment.steps, experiment.checkpoint
    saves = sorted({*range(policy.every, steps + 1, policy.every), steps})
    intervals = [getattr(hook, "every", steps) for hook in experiment.hooks]
    eligible = dict.fromkeys(
        (SAVE_REQUESTED, SAVE_COPIED, FIRST_ARRAY, BEFORE_COMMIT, AFTER_COMMIT), saves
    )
    eligible[BEFORE_PRUNE] = saves[policy.keep :]
    eligible[BEFORE_HOOKS] = [
        step for step in saves if any(step in (steps, step // n * n) for n in intervals)
    ]
    rotation = [STEP, *(kind for kind, among in eligible.items() if among)]
    kinds = [rotation[index % len(rotation)] for index in range(kills)]
    unused, points = set(saves), []
    for kind in sorted(kinds, key=lambda kind: len(eligible.get(kind, saves))):
        if candidates := [step for step in eligible.get(kind, ()) if step in unused]:
            points.append(KillPoint(kind, rng.choice(candidates)))
            unused.remove(points[-1].step)
        else:
            points.append(KillPoint(STEP, rng.randint(1, steps), rng.random()))
    return sorted(points, key=lambda point: (point.step, point.kind != STEP))
