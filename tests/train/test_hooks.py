"""Saving, stopping and loading of data while a run trains."""

import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from lmx.config.registry import ConfigError
from lmx.data.dataset import prefetch
from lmx.data.synthetic.task import RepeatTask
from lmx.run.goodput import TimeAccounting
from lmx.run.progress import RunProgress
from lmx.run.run_dir import RunDir, read_metrics
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.policy import CheckpointPolicy
from lmx.train.guard.nonfinite import make_reader
from lmx.train.hook import SAVE, HookRunner, every_steps
from lmx.train.hooks import preemption as module
from lmx.train.hooks.log import MetricLogger
from lmx.train.hooks.preemption import GracefulShutdown, StoppedError
from lmx.train.step import TrainState
from lmx.train.trainer import time_data


@pytest.fixture
def checkpoints(tmp_path):
    return CheckpointManager(tmp_path / "checkpoints", keep=9)


@pytest.fixture
def run_dir(tmp_path):
    run_dir = RunDir(tmp_path)
    yield run_dir
    run_dir.close()


@pytest.fixture
def shutdown(checkpoints, run_dir):
    shutdown = GracefulShutdown(checkpoints, run_dir, TimeAccounting())
    yield shutdown
    shutdown.close()


def state_of(step):
    return TrainState(jnp.int32(step), {"w": jnp.ones(3) * step}, ())


def test_the_state_is_saved_every_few_steps_and_at_the_last(checkpoints, run_dir):
    def list_saved():
        checkpoints.wait()
        return checkpoints.list_steps()

    saved = []
    save = CheckpointPolicy(every=3).build(checkpoints, run_dir, 8)
    runner = HookRunner(
        {SAVE: save},
        run_dir,
        TimeAccounting(),
        flush=lambda: saved.append(list_saved()),
    )
    for step in range(1, 9):
        runner(step, state_of(step), {})
    assert list_saved() == [3, 6, 8]
    assert saved == [[], [3], [3, 6]]  # metrics are flushed before each save


WRONG = [
    *("CheckpointPolicy.every=0", "CheckpointPolicy.keep=0"),
    *("CheckpointPolicy.max_failures=-1", "Decoder.depth=1000000000"),
    *("Decoder.width=0", "RepeatTask.batch_size=0", "RepeatTask.sequence_length=-1"),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_number_outside_its_range_is_refused_when_a_config_is_read(tiny, wrong):
    with pytest.raises(ConfigError, match=f"{wrong.split('=')[0]} is .*: it must be"):
        tiny(wrong)


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
def test_a_seed_that_does_not_fit_in_64_bits_is_refused(tiny, seed):
    with pytest.raises(ConfigError, match=f"Experiment.seed is {seed}: it must be "):
        tiny(f"Experiment.seed={seed}")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_stops(
    checkpoints, run_dir, monkeypatch, signum
):
    flushed, lines = [], []
    monkeypatch.setattr(module, "print_line", lines.append)
    previous = signal.getsignal(signum)
    shutdown = GracefulShutdown(
        checkpoints, run_dir, TimeAccounting(), flush=lambda: flushed.append(True)
    )
    shutdown(4, state_of(4), {})
    os.kill(os.getpid(), signum)
    deadline = time.monotonic() + 10.0
    while not lines and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "stopping after this step" in lines[0]
    with pytest.raises(StoppedError, match="stopped by SIG.* after step 5") as stopped:
        shutdown(5, state_of(5), {})
    shutdown.close()
    assert stopped.value.signum == signum and signal.getsignal(signum) is previous
    assert checkpoints.list_steps() == [5] and flushed == [True]


def stop(shutdown, step):
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(StoppedError):
        shutdown(step, state_of(step), {})


def test_a_state_that_is_being_saved_is_not_saved_twice(
    checkpoints, shutdown, monkeypatch
):
    checkpoints.save(5, state_of(5))
    monkeypatch.setattr(checkpoints, "save", lambda *_: pytest.fail("saved again"))
    stop(shutdown, 5)


def test_a_stop_saves_although_the_save_before_it_failed(checkpoints, shutdown):
    checkpoints.folder.write_text("")  # not a folder
    checkpoints.save(4, state_of(4))
    checkpoints.wait_pending()
    assert checkpoints.consecutive_failures == 1
    checkpoints.folder.unlink()
    stop(shutdown, 5)
    assert checkpoints.list_steps() == [5] and checkpoints.consecutive_failures == 0


def test_a_hook_is_due_every_few_steps_and_at_the_end():
    is_due = every_steps(3, 8)
    assert [step for step in range(1, 9) if is_due(step)] == [3, 6, 8]
    with pytest.raises(ConfigError, match="due every 0 steps: it must be 1"):
        every_steps(0, 8)


def test_the_wait_for_batches_is_measured():
    def load_slowly():
        for _ in range(3):
            time.sleep(0.02)
            yield batch

    batch = RepeatTask(vocab=8, batch_size=1, sequence_length=2).batch_at(0, 0)
    timing = TimeAccounting()
    assert len(list(time_data(timing, load_slowly()))) == 3
    waited = timing.sum_seconds("data")
    assert len(list(time_data(timing, iter([batch] * 3)))) == 3
    assert waited >= 0.06 > timing.sum_seconds("data") - waited


@pytest.fixture(scope="module")
def run(tiny):
    return tiny("Mesh.data=4").build().open()


def test_batches_are_on_their_devices_before_their_step(run):
    """They are loaded by other threads than the one that trains."""
    load, threads = run.load_batch, []

    def load_batch(*arguments):
        threads.append(threading.get_ident())
        return load(*arguments)

    object.__setattr__(run, "load_batch", load_batch)
    batches = prefetch(make_reader(run, ()), 2, run.steps)
    batch = next(batches)
    for field, expected in zip(batch, run.data.batch_at(0, 2), strict=True):
        assert isinstance(field, jax.Array) and len(field.sharding.device_set) == 4
        assert (jax.device_get(field) == expected).all()
    list(batches)
    assert len(threads) == 8 and threading.get_ident() not in threads


def test_a_step_is_checked_after_the_next_or_at_a_flush(run, run_dir):
    checked = []
    logger = MetricLogger(
        run,
        run_dir,
        TimeAccounting(),
        RunProgress("tiny", 0, 10, enabled=False),
        check=lambda step, values: checked.append((step, values)),
        log_every=10,
    )
    for step in (1, 2):
        logger(step, state_of(step), {"loss": jnp.float32(step), "else": jnp.ones(3)})
    assert checked == [(1, {"loss": 1.0})]
    logger.flush()
    logger.flush()
    assert checked == [(1, {"loss": 1.0}), (2, {"loss": 2.0})]


def test_the_speed_of_each_step_is_its_own_where_dispatch_computes(run, run_dir):
    """As on a CPU, whose newest step is done when the one before is logged."""
    timing = TimeAccounting()
    logger = MetricLogger(
        run,
        run_dir,
        timing,
        RunProgress("tiny", 0, 10, enabled=False),
        check=lambda step, values: None,
        log_every=1,
    )
    for step in range(1, run.steps + 1):
        with timing.measure("step"):
            time.sleep(0.02)
        metrics = {"loss": jnp.float32(1), "nats": jnp.float32(1)}
        logger(step, state_of(step), jax.block_until_ready(metrics))
    first, *rows = read_metrics(run_dir.path)
    assert "seconds/step" not in first and len(rows) == run.steps - 1
    assert min(row["seconds/step"] for row in rows) > 0.015
