"""Every second of a run is in exactly one phase."""

import json
import os
import time

import pytest

from lmx.run import goodput
from lmx.run.goodput import (
    TimeAccounting,
    now,
    read_process_start,
    read_timing,
    record_death,
    total_seconds,
)
from lmx.run.run_dir import RunDir


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test advances, while the wall clock jumps."""

    class Clock:
        def __init__(self):
            self.seconds, self.wall_times = 100.0, iter(range(10**9, 0, -12345))

        def advance(self, seconds):
            self.seconds += seconds

    clock = Clock()
    monkeypatch.setattr(goodput, "now", lambda: clock.seconds)
    monkeypatch.setattr(time, "time", lambda: float(next(clock.wall_times)))
    return clock


@pytest.fixture
def start(tmp_path, clock):
    """Starts an attempt at the run in `tmp_path`, at a step."""

    def start(step, since=None):
        account = TimeAccounting(since)
        clock.advance(2.0)
        account.start_attempt(RunDir(tmp_path), step)
        account.switch("step")
        return account

    return start


def test_phases_nest_and_no_second_counts_twice(clock):
    account = TimeAccounting()
    clock.advance(1.0)
    with account.measure("step"):
        clock.advance(2.0)
        with account.measure("data"):
            clock.advance(4.0)
        clock.advance(8.0)
    clock.advance(16.0)
    seconds = {phase: account.sum_seconds(phase) for phase in ("start", "step", "data")}
    assert seconds == {"start": 17.0, "step": 10.0, "data": 4.0}
    assert account.sum_seconds("step", "data") == 14.0


def test_a_phase_ends_when_an_error_is_raised_in_it(clock):
    account = TimeAccounting()
    with pytest.raises(ValueError), account.measure("Evaluate"):
        clock.advance(1.0)
        raise ValueError
    clock.advance(2.0)
    assert account.sum_seconds("Evaluate") == 1.0
    assert account.sum_seconds("start") == 2.0


def test_attempts_and_the_time_between_them_add_up(tmp_path, clock, start):
    account = start(0)
    clock.advance(10.0)
    account.record(4)
    with account.measure("compile"):
        clock.advance(3.0)
    clock.advance(5.0)
    account.record(6)  # the process is killed two seconds later
    clock.advance(2.0)
    record_death(tmp_path, os.getpid(), -9)
    clock.advance(20.0)
    account = start(4)
    clock.advance(7.0)
    account.record(6)
    seconds, rows = total_seconds(tmp_path), read_timing(tmp_path)
    assert seconds == {
        "start": 4.0, "step": 17.0, "compile": 3.0, "lost": 7.0, "down": 20.0,
    }  # fmt: skip
    assert sum(seconds.values()) == rows[-1]["clock"] - rows[0]["started"] == 51.0


def test_without_a_recorded_death_the_time_counts_as_down(tmp_path, clock, start):
    start(0)
    clock.advance(3.0)
    start(0)
    assert total_seconds(tmp_path) == {"start": 4.0, "down": 3.0}


def test_time_before_the_accounting_counts_as_start(tmp_path, clock, start):
    start(0, since=40.0)
    assert total_seconds(tmp_path) == {"start": 62.0}


def test_repeated_work_is_lost_once_for_any_number_of_attempts(tmp_path, clock, start):
    for step in (0, 2, 0):
        account = start(step)
        clock.advance(1.0)
        account.record(step + 2)
    expected = {"start": 6.0, "lost": 2.0, "step": 1.0, "down": 0.0}
    assert total_seconds(tmp_path) == expected


@pytest.mark.parametrize("wall_time, down", [(1030.0, 18.0), (900.0, 0.0)])
def test_after_a_reboot_the_wall_clock_counts_and_time_is_not_negative(
    tmp_path, wall_time, down
):
    rows = [
        {"started": 50.0, "boot_id": "old", "clock": 51.0, "wall_time": 1001.0},
        {"seconds": {"step": 9.0}, "boot_id": "old", "clock": 60.0}
        | {"wall_time": 1010.0},
        {"started": 1.0, "boot_id": "new", "clock": 3.0, "wall_time": wall_time},
    ]
    lines = [json.dumps({"attempt": 1, "step": 0, **row}) + "\n" for row in rows]
    (tmp_path / "timing.jsonl").write_text("".join(lines))
    assert total_seconds(tmp_path) == {"step": 9.0, "down": down}


def test_the_process_started_before_now():
    assert 0.0 < now() - read_process_start() < 24 * 3600.0
