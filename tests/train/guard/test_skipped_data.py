"""Which data a step has, and when a guard looks at what it measured."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from lmx.run.run_dir import RunDir
from lmx.run.timing import TimeAccounting
from lmx.train.guard.guard import FaultError, MetricWatcher
from lmx.train.guard.rewind import Rewind
from lmx.train.guard.skipped_data import merge_ranges, to_data_step
from lmx.train.hook import PreSaveHook, ScheduledHook
from lmx.train.hooks.runner import SAVE, HookRunner
from lmx.train.step import TrainState

STATE = TrainState(jnp.int32(0), {}, ())


def test_steps_have_the_data_that_are_left_in_order():
    """Against a list of all data steps, those of the ranges struck out."""
    chance = np.random.default_rng(0)
    for _ in range(50):
        ranges = [sorted(chance.integers(0, 60, 2).tolist()) for _ in range(3)]
        out = {step for begin, end in ranges for step in range(begin, end)}
        left = [step for step in range(400) if step not in out]
        gaps = merge_ranges(ranges)
        assert [to_data_step(gaps, step) for step in range(200)] == left[:200]
        assert all(a[1] < b[0] for a, b in itertools.pairwise(gaps))


def test_a_step_is_looked_at_after_the_next_or_before_its_save():
    seen = []
    watch = MetricWatcher(lambda done, values: seen.append((done, values["loss"])))
    for done in (1, 2):
        watch(done, STATE, {"loss": jnp.float32(done), "else": jnp.ones(3)})
    assert seen == [(1, 1.0)]
    watch.flush()
    watch.flush()
    assert seen == [(1, 1.0), (2, 2.0)]


def test_a_check_comes_before_the_save_of_its_step_and_may_prevent_it(tmp_path):
    directory, did = RunDir(tmp_path), []

    def fail(*_):
        did.append("check")
        raise FaultError("a bit has flipped", 75)

    hooks = {
        SAVE: ScheduledHook(lambda done: True, lambda *_: did.append("save")),
        "Sample": ScheduledHook(lambda done: True, lambda *_: did.append("sample")),
        "Replicas": PreSaveHook(lambda done: done == 2, fail),
    }
    chores = HookRunner(hooks, lambda: None, directory, TimeAccounting())
    chores(1, STATE, {})
    with pytest.raises(FaultError, match="a bit has flipped"):
        chores(2, STATE, {})
    assert did == ["save", "sample", "check"]


@pytest.mark.parametrize(
    ("steps", "done", "to"),
    [([20, 25], 33, 25), ([20, 25], 29, 20), ([25], 29, 0), ([25, 30], 29, None)],
)
def test_a_rewind_goes_to_the_newest_state_that_is_early_enough(steps, done, to):
    """To none where the one it needs is there no more, rather than to the beginning."""
    assert Rewind(steps_back=5)._choose_checkpoint(steps, 2, done) == to
