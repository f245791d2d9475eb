"""Which data a step has, and when a guard looks at what it measured."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from lmx.train.guard.gaps import data_step, merged
from lmx.train.guard.guard import FaultError, Watch
from lmx.train.guard.rewind import Rewind
from lmx.train.hooks.chores import SAVE, Chores
from lmx.train.hooks.periodic import Check, Due
from lmx.train.record.account import Account
from lmx.train.record.directory import Directory
from lmx.train.step import TrainState

STATE = TrainState(jnp.int32(0), {}, ())


def test_steps_have_the_data_that_are_left_in_order():
    """Against a list of all data steps, those of the ranges struck out."""
    chance = np.random.default_rng(0)
    for _ in range(50):
        ranges = [sorted(chance.integers(0, 60, 2).tolist()) for _ in range(3)]
        out = {step for begin, end in ranges for step in range(begin, end)}
        left = [step for step in range(400) if step not in out]
        gaps = merged(ranges)
        assert [data_step(gaps, step) for step in range(200)] == left[:200]
        assert all(a[1] < b[0] for a, b in itertools.pairwise(gaps))


def test_a_step_is_looked_at_after_the_next_or_before_its_save():
    seen = []
    watch = Watch(lambda done, values: seen.append((done, values["loss"])))
    for done in (1, 2):
        watch(done, STATE, {"loss": jnp.float32(done), "else": jnp.ones(3)})
    assert seen == [(1, 1.0)]
    watch.flush()
    watch.flush()
    assert seen == [(1, 1.0), (2, 2.0)]


def test_a_check_comes_before_the_save_of_its_step_and_may_prevent_it(tmp_path):
    directory, did = Directory(tmp_path), []

    def fail(*_):
        did.append("check")
        raise FaultError("a bit has flipped", 75)

    hooks = {
        SAVE: Due(lambda done: True, lambda *_: did.append("save")),
        "Sample": Due(lambda done: True, lambda *_: did.append("sample")),
        "Replicas": Check(lambda done: done == 2, fail),
    }
    chores = Chores(hooks, lambda: None, directory, Account())
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
    assert Rewind(back=5)._early(steps, 2, done) == to
