"""When a process dies: the moments of a run, drawn from a seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

STEP, ASKED, COPIED, ARRAY, BEFORE, AFTER, OLD, DUE, START, CLOCK = KINDS = (
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
WORDS = {
    STEP: "in step {step}, {part:.0%} of the time of one after it began",
    ASKED: "before anything of the state after step {step} was written",
    COPIED: "once the state after step {step} was copied off its devices",
    ARRAY: "once a file of arrays of the state after step {step} was there",
    BEFORE: "before the state after step {step} was committed",
    AFTER: "after the state after step {step} was committed",
    OLD: "before an old state gave way to that after step {step}",
    DUE: "between the save after step {step} and what was due then",
    START: "{part:.2f} s after it was started",
    CLOCK: "{part:.2f} s after it began to train",
}

LATEST = {START: 3.0, CLOCK: 1.0}  # seconds in which a clock may kill


@dataclass(frozen=True)
class Moment:
    """When a process is killed.

    Attributes:
        kind: one of KINDS.
        step: the step that is not done, or after which the state is saved.
        part: of a step's time for `step`; seconds for `start` and `clock`.
    """

    kind: str
    step: int = 0
    part: float = 0.0

    def __str__(self):
        return WORDS[self.kind].format(step=self.step, part=self.part)


def drawn(
    seed: int, kills: int, steps: int, saves: Sequence[int], keep: int, due: set[int]
) -> list[Moment]:
    """So many moments in the order in which a run meets them, of every kind in turn.

    `saves` are the steps after which the state is saved, of which the newest `keep`
    stay; at those of `due` something else is due too. A state is saved once, and so
    one kill is in each save; where none is left for a kind, the kill is in a step.
    """
    chance = random.Random(seed)
    may = dict.fromkeys((ASKED, COPIED, ARRAY, BEFORE, AFTER), set(saves))
    may |= {OLD: set(saves[keep:]), DUE: due & set(saves)}
    turns = [STEP, *(kind for kind, among in may.items() if among)]
    wanted = [turns[number % len(turns)] for number in range(kills)]
    free, found = set(saves), []
    for kind in sorted(wanted, key=lambda kind: len(may.get(kind, saves))):
        left = sorted(free & may.get(kind, set()))
        if left:
            found.append(Moment(kind, chance.choice(left)))
            free.remove(found[-1].step)
        else:
            step, part = chance.randint(1, steps), chance.random()
            found.append(Moment(STEP, step, part))
    return sorted(found, key=lambda moment: (moment.step, moment.kind != STEP))


def by_clock(seed: int, kills: int) -> list[Moment]:
    """So many moments of a clock, a quarter of them at a start, whatever goes on."""
    chance = random.Random(seed)
    kinds = [chance.choice([START, CLOCK, CLOCK, CLOCK]) for _ in range(kills)]
    return [Moment(kind, part=chance.uniform(0, LATEST[kind])) for kind in kinds]
