"""Tests of prefetching."""

import functools
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import chex
import pytest

from lmx.core.batch import Batch
from lmx.data.dataset import BUFFER_SIZE, prefetch
from lmx.data.synthetic.task import RepeatTask

TASK = RepeatTask(vocab=9, batch_size=2, sequence_length=4)
BATCH_AT = functools.partial(TASK.batch_at, 0)


def read_slowly_if_even(step: int) -> Batch:
    time.sleep(0.005 * (step % 2 == 0))
    return BATCH_AT(step)


def fail_at_five(step: int) -> Batch:
    if step == 5:
        raise ValueError("no batch 5")
    return BATCH_AT(step)


def threads_end() -> bool:
    deadline = time.monotonic() + 10
    while any("grain" in thread.name for thread in threading.enumerate()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_batches_come_in_order_whichever_is_ready_first():
    batches = list(prefetch(read_slowly_if_even, 3, 23))
    chex.assert_trees_all_equal(batches, [BATCH_AT(step) for step in range(3, 23)])
    assert threads_end()


def test_an_empty_range_has_no_batches():
    assert list(prefetch(BATCH_AT, 7, 7)) == []


def test_an_error_is_raised_at_its_step():
    batches = prefetch(fail_at_five, 3, 10**9)
    assert [next(batches).tokens.shape for _ in range(2)] == [(2, 4), (2, 4)]
    with pytest.raises(ValueError, match="no batch 5"):
        next(batches)
    assert threads_end()


def test_closing_early_ends_the_threads():
    batches = prefetch(BATCH_AT, 0, 10**9)
    next(batches)
    batches.close()
    assert threads_end()


def test_only_a_few_batches_are_read_ahead():
    steps = []

    def batch_at(step: int) -> Batch:
        steps.append(step)
        return BATCH_AT(step)

    batches = prefetch(batch_at, 0, 10**9)
    next(batches)
    time.sleep(0.1)
    batches.close()
    assert max(steps) <= BUFFER_SIZE + 1


def test_an_interrupt_ends_the_process():
    code = (
        "import signal\n"
        "from functools import partial\n"
        "from lmx.data.dataset import prefetch\n"
        "from lmx.data.synthetic.task import RepeatTask\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "task = RepeatTask(vocab=9, batch_size=2, sequence_length=4)\n"
        "for number, _ in enumerate(prefetch(partial(task.batch_at, 0), 0, 10**9)):\n"
        "    if number == 3: print('reading', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
