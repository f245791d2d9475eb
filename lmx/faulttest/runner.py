"""Proving that a run cannot be lost: what is run, compared, and shown by that."""

import json
import time
from collections.abc import Sequence
from typing import Any

from lmx.config.value import Config
from lmx.faulttest import certificate
from lmx.faulttest.kill_point import KillPoint
from lmx.faulttest.process_group import RunAttempt, Scenario
from lmx.faulttest.scenario import (
    BASELINE,
    KillSchedule,
    ProgressBar,
    load_metadata,
    other_topologies,
    run_baseline,
    run_killed,
    run_resharded,
)

REPORT_FILE = "certificate.json"
RESHARDED_DELAY = 0.5  # of a step, where a run is killed that goes on elsewhere


def run_faulttest(
    scenario: Scenario, config: Config, kill_points: Sequence[KillPoint], **facts: Any
) -> dict[str, Any]:
    """Runs the experiment undisturbed, killed, and killed to go on elsewhere.

    `config` is what the page and words of the trial come to. The certificate says what
    came of it, with these facts; it is written to the trial's folder too. Raises
    LifeError where a process ends otherwise than it should.
    """
    begun = time.monotonic()
    plan = KillSchedule.from_config(config)
    bar = ProgressBar(len(kill_points) + 5, plan.steps)
    first, same = compare_killed(scenario, plan, kill_points, bar)
    card = load_metadata(scenario.folder / BASELINE)
    turns = other_topologies(plan, card)
    lives, refused = (
        run_resharded(scenario, plan, turns, RESHARDED_DELAY, bar)
        if turns
        else ([], [])
    )
    bar.close()
    told = {
        **facts,
        **certificate.describe_run(scenario, config, plan),
        **same,
        "other_mesh": certificate.compare_other_mesh(
            scenario.folder, first, lives, plan, certificate.default_rtol(config, card)
        ),
        "refused": refused,
        "seconds": round(time.monotonic() - begun, 1),
    }
    told = {"holds": certificate.passed(told), **told}
    (scenario.folder / REPORT_FILE).write_text(json.dumps(told, indent=1) + "\n")
    return told


def compare_killed(
    scenario: Scenario,
    plan: KillSchedule,
    kill_points: Sequence[KillPoint],
    bar: ProgressBar,
) -> tuple[RunAttempt, dict[str, Any]]:
    """A run that nobody disturbed, and what one killed at these moments shares with it.

    Where the killed run ends before it has met all of them, another goes on with the
    rest: there is one entry for each.
    """
    first = run_baseline(scenario, plan.topology, bar)
    runs = run_killed(scenario, plan.topology, kill_points, bar)
    return first, {
        "same_mesh": certificate.compare_same_mesh(scenario.folder, first, runs, plan)
    }
