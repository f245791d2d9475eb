"""When a process dies: the moments of a run, drawn from a seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

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
) = KINDS = (
    "step",
    "asked",
    "copied",
    "array",
    "before",
    "after",
    "old",
    "due",
    "start",
    "clock",
)
DESCRIPTIONS = {
    STEP: "in step {step}, {delay:.0%} of the time of one after it began",
    SAVE_REQUESTED: "before anything of the state after step {step} was written",
    SAVE_COPIED: "once the state after step {step} was copied off its devices",
    FIRST_ARRAY: "once a file of arrays of the state after step {step} was there",
    BEFORE_COMMIT: "before the state after step {step} was committed",
    AFTER_COMMIT: "after the state after step {step} was committed",
    BEFORE_PRUNE: "before an old state gave way to that after step {step}",
    BEFORE_HOOKS: "between the save after step {step} and what was due then",
    STARTUP: "{delay:.2f} s after it was started",
    TIMER: "{delay:.2f} s after its first step",
}

MAX_DELAY = {STARTUP: 3.0, TIMER: 1.0}  # seconds in which a clock may kill


@dataclass(frozen=True)
class KillPoint:
    """When a process is killed.

    Attributes:
        kind: one of KINDS.
        step: the step that is not done, or after which the state is saved.
        part: of a step's time for `step`; seconds for `start` and `clock`.
    """

    kind: str
    step: int = 0
    delay: float = 0.0

    def __str__(self):
        return DESCRIPTIONS[self.kind].format(step=self.step, delay=self.delay)


def sample_kills(
    seed: int,
    kills: int,
    steps: int,
    save_steps: Sequence[int],
    keep: int,
    hook_steps: set[int],
) -> list[KillPoint]:
    """So many moments in the order in which a run meets them, of every kind in turn.

    `save_steps` are the steps after which the state is saved, of which the newest `keep`
    stay; at those of `due` something else is due too. A state is saved once, and so
    one kill is in each save; where none is left for a kind, the kill is in a step.
    """
    chance = random.Random(seed)
    may = dict.fromkeys(
        (SAVE_REQUESTED, SAVE_COPIED, FIRST_ARRAY, BEFORE_COMMIT, AFTER_COMMIT),
        set(save_steps),
    )
    may |= {
        BEFORE_PRUNE: set(save_steps[keep:]),
        BEFORE_HOOKS: hook_steps & set(save_steps),
    }
    turns = [STEP, *(kind for kind, among in may.items() if among)]
    wanted = [turns[number % len(turns)] for number in range(kills)]
    free, found = set(save_steps), []
    for kind in sorted(wanted, key=lambda kind: len(may.get(kind, save_steps))):
        left = sorted(free & may.get(kind, set()))
        if left:
            found.append(KillPoint(kind, chance.choice(left)))
            free.remove(found[-1].step)
        else:
            step, part = chance.randint(1, steps), chance.random()
            found.append(KillPoint(STEP, step, part))
    return sorted(found, key=lambda moment: (moment.step, moment.kind != STEP))


def sample_timed_kills(seed: int, kills: int) -> list[KillPoint]:
    """So many moments of a clock, a quarter of them at a start, whatever goes on."""
    chance = random.Random(seed)
    kinds = [chance.choice([STARTUP, TIMER, TIMER, TIMER]) for _ in range(kills)]
    return [KillPoint(kind, delay=chance.uniform(0, MAX_DELAY[kind])) for kind in kinds]
