"""Proving that a run cannot be lost: what is run, compared, and shown by that."""

import json
import time
from collections.abc import Sequence
from typing import Any

from lmx.config.tree import Config
from lmx.train.prove import certificate
from lmx.train.prove.life import Life, Trial
from lmx.train.prove.moment import Moment
from lmx.train.prove.trial import (
    WHOLE,
    Bar,
    Plan,
    card_of,
    elsewhere,
    killed,
    moved,
    whole,
)

FILE = "certificate.json"
HALF = 0.5  # of a step, where a run is killed that goes on elsewhere


def prove(
    trial: Trial, config: Config, moments: Sequence[Moment], **facts: Any
) -> dict[str, Any]:
    """Runs the experiment undisturbed, killed, and killed to go on elsewhere.

    `config` is what the page and words of the trial come to. The certificate says what
    came of it, with these facts; it is written to the trial's folder too. Raises
    LifeError where a process ends otherwise than it should.
    """
    begun = time.monotonic()
    plan = Plan.of(config)
    bar = Bar(len(moments) + 5, plan.steps)
    first, same = disturbed(trial, plan, moments, bar)
    card = card_of(trial.folder / WHOLE)
    turns = elsewhere(plan, card)
    lives, refused = moved(trial, plan, turns, HALF, bar) if turns else ([], [])
    bar.close()
    told = {
        **facts,
        **certificate.stands_on(trial, config, plan),
        **same,
        "other_mesh": certificate.other_mesh(
            trial.folder, first, lives, plan, certificate.tolerance(config, card)
        ),
        "refused": refused,
        "seconds": round(time.monotonic() - begun, 1),
    }
    told = {"holds": certificate.holds(told), **told}
    (trial.folder / FILE).write_text(json.dumps(told, indent=1) + "\n")
    return told


def disturbed(
    trial: Trial, plan: Plan, moments: Sequence[Moment], bar: Bar
) -> tuple[Life, dict[str, Any]]:
    """A run that nobody disturbed, and what one killed at these moments shares with it.

    Where the killed run ends before it has met all of them, another goes on with the
    rest: there is one entry for each.
    """
    first = whole(trial, plan.place, bar)
    runs = killed(trial, plan.place, moments, bar)
    return first, {"same_mesh": certificate.same_mesh(trial.folder, first, runs, plan)}
