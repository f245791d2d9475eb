"""Kills are drawn from a seed, of every kind, and can all be met."""

import pytest

from lmx.faulttest.kill_point import (
    BEFORE_HOOKS,
    BEFORE_PRUNE,
    KINDS,
    STARTUP,
    STEP,
    TIMER,
    sample_kills,
    sample_timed_kills,
)

SAVES = [*range(4, 60, 4), 60]
DUE_AT = {6, 12, 18, 24, 30, 36, 42, 48, 54, 60}


def moments(seed, kills=16, saves=SAVES, due=DUE_AT):
    return sample_kills(seed, kills, 60, saves, keep=2, hook_steps=due)


def test_the_same_seed_draws_the_same_moments_and_another_others():
    assert moments(3) == moments(3) != moments(4)
    assert (
        sample_timed_kills(3, 9) == sample_timed_kills(3, 9) != sample_timed_kills(4, 9)
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_run_meets_every_moment_in_its_order(seed):
    found = moments(seed)
    assert {moment.kind for moment in found} == {*KINDS} - {STARTUP, TIMER}
    saved = [moment.step for moment in found if moment.kind != STEP]
    assert saved == sorted(set(saved)) and set(saved) <= set(SAVES)
    assert [moment.step for moment in found] == sorted(m.step for m in found)
    for moment in found:
        assert moment.kind != BEFORE_HOOKS or moment.step in DUE_AT
        assert moment.kind != BEFORE_PRUNE or moment.step in SAVES[2:]


def test_what_cannot_be_met_is_not_drawn():
    few = moments(0, saves=[30, 60], kills=3, due=set())
    assert not {BEFORE_PRUNE, BEFORE_HOOKS} & {moment.kind for moment in few}


def test_kills_that_find_no_save_are_in_steps():
    found = moments(0, saves=[30, 60])
    assert len(found) == 16 and len({m.step for m in found if m.kind != STEP}) == 2


def test_a_clock_kills_in_the_start_and_in_the_second_after_it():
    found = sample_timed_kills(0, 500)
    for kind, latest, share in ((STARTUP, 3.0, 0.25), (TIMER, 1.0, 0.75)):
        parts = [moment.delay for moment in found if moment.kind == kind]
        assert len(parts) == pytest.approx(500 * share, rel=0.2)
        assert 0 <= min(parts) < 0.1 * latest and 0.9 * latest < max(parts) <= latest


def test_a_moment_says_when_it_is():
    said = {f"{moment}" for moment in moments(0)}
    assert all(any(ch.isdigit() for ch in one) for one in said) and len(said) == 16
