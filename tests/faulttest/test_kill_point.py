"""Kill points are sampled from a seed, of every kind, and a run can reach them all."""

import pytest

from lmx.faulttest.kill_point import (
    BEFORE_HOOKS,
    BEFORE_PRUNE,
    KINDS,
    STEP,
    TIMED,
    sample_kills,
)

HOOKS = [
    "Experiment.hooks=[@Evaluate()]",
    "Evaluate.data=@RepeatTask()",
    "Evaluate.batches=1",
    "Evaluate.every=6",
]


@pytest.fixture(scope="session")
def sample(tiny):
    """Samples kills of an experiment of 60 steps that keeps two saves."""

    def sample(seed, kills=16, save_every=4, hooks=True):
        words = ["Experiment.steps=60", f"CheckpointPolicy.every={save_every}"]
        words += ["CheckpointPolicy.keep=2", *(HOOKS if hooks else [])]
        return sample_kills(seed, kills, tiny(*words).build())

    return sample


def test_a_seed_decides_the_kill_points(sample):
    assert sample(3) == sample(3) != sample(4)


def test_a_run_reaches_every_kill_point_in_order(sample):
    saves = [*range(4, 60, 4), 60]
    for seed in range(20):
        points = sample(seed)
        assert {point.kind for point in points} == {*KINDS} - {*TIMED}
        used = [point.step for point in points if point.kind != STEP]
        assert used == sorted(set(used)) and set(used) <= set(saves)
        assert [point.step for point in points] == sorted(p.step for p in points)
        for point in points:
            assert point.kind != BEFORE_HOOKS or point.step in (12, 24, 36, 48, 60)
            assert point.kind != BEFORE_PRUNE or point.step in saves[2:]
            assert 1 <= point.step <= 60 and 0.0 <= point.delay < 1.0


def test_no_kind_is_sampled_that_cannot_occur(sample):
    points = sample(0, kills=7, save_every=30, hooks=False)
    assert not {BEFORE_PRUNE, BEFORE_HOOKS} & {point.kind for point in points}


def test_kills_without_a_save_are_in_steps(sample):
    points = sample(0, save_every=30)
    assert len(points) == 16 and len({p.step for p in points if p.kind != STEP}) == 2


def test_each_kill_point_has_its_own_description(sample):
    texts = {f"{point}" for point in sample(0)}
    assert all(any(ch.isdigit() for ch in text) for text in texts) and len(texts) == 16
