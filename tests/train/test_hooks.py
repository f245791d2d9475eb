"""What happens beside the training happens when it should."""

import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from lmx.config.registry import ConfigError
from lmx.data.synthetic.repeat import RepeatTask
from lmx.run.timing import TimeAccounting
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.policy import CheckpointPolicy
from lmx.train.hook import make_schedule
from lmx.train.hooks import signals as module
from lmx.train.hooks.signals import GracefulShutdown, StoppedError
from lmx.train.step import TrainState
from lmx.train.trainer import _load_batches, _time_data


@pytest.fixture
def checkpoints(tmp_path):
    return CheckpointManager(tmp_path / "checkpoints", keep=9)


def state_of(step):
    return TrainState(jnp.int32(step), {"w": jnp.ones(3) * step}, ())


def test_the_state_is_saved_every_few_steps_and_at_the_last(checkpoints):
    flushed = []
    save = CheckpointPolicy(every=3).start(
        checkpoints, 8, lambda: flushed.append(saved())
    )

    def saved():
        checkpoints.wait()
        return checkpoints.list_steps()

    for done in range(1, 9):
        save(done, state_of(done), {})
    assert saved() == [3, 6, 8]
    assert flushed == [[], [3], [3, 6]]  # what was measured is written before


@pytest.mark.parametrize("wrong", [{"every": 0}, {"keep": 0}, {"max_failures": 0}])
def test_never_to_save_or_to_keep_is_refused(wrong):
    with pytest.raises(
        ConfigError,
        match=r"CheckpointPolicy.every, keep and max_failures must be 1 or more",
    ):
        CheckpointPolicy(**wrong)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_stops(checkpoints, monkeypatch, signum):
    flushed, said = [], []
    monkeypatch.setattr(module, "print_line", said.append)
    before = signal.getsignal(signum)
    with GracefulShutdown(
        checkpoints, lambda: flushed.append(True), TimeAccounting()
    ) as stop:
        stop(4, state_of(4), {})
        os.kill(os.getpid(), signum)
        late = time.monotonic() + 10.0
        while not said and time.monotonic() < late:
            time.sleep(0.01)
        assert "stopping after this step" in said[0]
        with pytest.raises(StoppedError, match="stopped by SIG.* after step 5") as end:
            stop(5, state_of(5), {})
    assert end.value.signum == signum and signal.getsignal(signum) is before
    assert checkpoints.list_steps() == [5] and flushed == [True]


def test_a_state_that_is_on_its_way_is_not_saved_twice(checkpoints, monkeypatch):
    checkpoints.save(5, state_of(5))
    monkeypatch.setattr(checkpoints, "save", lambda *_: pytest.fail("saved again"))
    with GracefulShutdown(checkpoints, lambda: None, TimeAccounting()) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedError):
            stop(5, state_of(5), {})


def test_due_every_few_steps_and_at_the_end():
    is_due = make_schedule(3, 8)
    assert [done for done in range(1, 9) if is_due(done)] == [3, 6, 8]
    with pytest.raises(ConfigError, match="every 0 steps is never: it must be 1"):
        make_schedule(0, 8)


def test_the_wait_for_batches_is_measured():
    def slow():
        for _ in range(3):
            time.sleep(0.02)
            yield batch

    batch = RepeatTask(vocab=8, batch_size=1, sequence_length=2).batch_at(0, 0)
    account = TimeAccounting()
    assert len(list(_time_data(account, slow()))) == 3
    waited = account.sum_seconds("data")
    assert len(list(_time_data(account, iter([batch] * 3)))) == 3
    assert waited >= 0.06 > account.sum_seconds("data") - waited


def test_batches_are_on_their_devices_before_their_step(tiny):
    """Put there by another thread than the one that trains."""
    run = tiny("Mesh.data=4").build().open()
    read, threads = run.load_batch, []
    object.__setattr__(
        run,
        "load_batch",
        lambda *what: (threads.append(threading.get_ident()), read(*what))[1],
    )
    batches = _load_batches(run, 2)
    batch = next(batches)
    for field, wanted in zip(batch, run.data.batch_at(0, 2), strict=True):
        assert isinstance(field, jax.Array) and len(field.sharding.device_set) == 4
        assert (jax.device_get(field) == wanted).all()
    list(batches)
    assert len(threads) == 8 and threading.get_ident() not in threads


def test_a_stop_saves_though_the_save_before_it_failed(checkpoints):
    (checkpoints.folder.parent / "checkpoints").write_text("")  # no folder any more
    checkpoints.save(4, state_of(4))
    checkpoints.wait_pending()
    assert checkpoints.consecutive_failures == 1
    checkpoints.folder.unlink()
    with GracefulShutdown(checkpoints, lambda: None, TimeAccounting()) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedError):
            stop(5, state_of(5), {})
    assert checkpoints.list_steps() == [5] and checkpoints.consecutive_failures == 0
