"""Every second of a run is in one state, and none is left over."""

import json
import os
import time

import pytest

from lmx.run import timing as module
from lmx.run.run_dir import RunDir
from lmx.run.timing import (
    TimeAccounting,
    now,
    read_process_start,
    read_timing,
    record_death,
    total_seconds,
)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when told; the wall's clock jumps about meanwhile."""

    class Clock:
        def __init__(self):
            self.seconds, self.walls = 100.0, iter(range(10**9, 0, -12345))

        def go(self, seconds):
            self.seconds += seconds

    clock = Clock()
    monkeypatch.setattr(module, "matches", lambda: clock.seconds)
    monkeypatch.setattr(time, "time", lambda: float(next(clock.walls)))
    return clock


@pytest.fixture
def begin(tmp_path, clock):
    """Begins an attempt at the run in a folder, at a step."""

    def begin(step, since=None):
        account = TimeAccounting(since)
        clock.go(2.0)
        account.start_attempt(RunDir(tmp_path), step)
        account.switch("step")
        return account

    return begin


def whole(path):
    """Seconds from the first beginning to the last note."""
    first, *_, last = [row for row in read_timing(path)]
    return last["clock"] - first["began"]


def test_states_nest_and_none_counts_for_two(clock):
    account = TimeAccounting()
    clock.go(1.0)
    with account.measure("step"):
        clock.go(2.0)
        with account.measure("data"):
            clock.go(4.0)
        clock.go(8.0)
    clock.go(16.0)
    spent = {state: account.sum_seconds(state) for state in ("start", "step", "data")}
    assert spent == {"start": 17.0, "step": 10.0, "data": 4.0}
    assert account.sum_seconds("step", "data") == 14.0


def test_a_state_ends_with_what_is_raised_in_it(clock):
    account = TimeAccounting()
    with pytest.raises(ValueError), account.measure("Evaluate"):
        clock.go(1.0)
        raise ValueError
    clock.go(2.0)
    assert (
        account.sum_seconds("Evaluate") == 1.0 and account.sum_seconds("start") == 2.0
    )


def test_attempts_and_what_lies_between_add_up_to_the_whole(tmp_path, clock, begin):
    account = begin(0)
    clock.go(10.0)
    account.record(4)
    with account.measure("compile"):
        clock.go(3.0)
    clock.go(5.0)
    account.record(6)  # then it is killed, two seconds later
    clock.go(2.0)
    record_death(tmp_path, os.getpid(), -9)
    clock.go(20.0)
    account = begin(4)
    clock.go(7.0)
    account.record(6)
    assert total_seconds(tmp_path) == {
        "start": 4.0, "step": 17.0, "compile": 3.0, "lost": 7.0, "down": 20.0,
    }  # fmt: skip
    assert sum(total_seconds(tmp_path).values()) == whole(tmp_path) == 51.0


def test_a_death_that_nobody_saw_is_time_between_attempts(tmp_path, clock, begin):
    begin(0)
    clock.go(3.0)
    begin(0)
    assert total_seconds(tmp_path) == {"start": 4.0, "down": 3.0}


def test_the_time_before_the_account_is_that_of_the_start(tmp_path, clock, begin):
    begin(0, since=40.0)
    assert total_seconds(tmp_path) == {"start": 62.0}


def test_work_is_lost_once_however_often_a_run_falls_back(tmp_path, clock, begin):
    for step in (0, 2, 0):
        account = begin(step)
        clock.go(1.0)
        account.record(step + 2)
    found = total_seconds(tmp_path)
    assert found == {"start": 6.0, "lost": 2.0, "step": 1.0, "down": 0.0}


@pytest.mark.parametrize("wall, down", [(1030.0, 18.0), (900.0, 0.0)])
def test_after_the_machine_was_started_anew_the_wall_tells_and_never_less_than_nothing(
    tmp_path, wall, down
):
    rows = [
        {"began": 50.0, "step": 0, "boot": "old", "clock": 51.0, "wall": 1001.0},
        {"step": 0, "seconds": {"step": 9.0}, "boot": "old", "clock": 60.0}
        | {"wall": 1010.0},
        {"began": 1.0, "step": 0, "boot": "new", "clock": 3.0, "wall": wall},
    ]
    lines = [json.dumps({"attempt": 1, **row}) + "\n" for row in rows]
    (tmp_path / "account.jsonl").write_text("".join(lines))
    assert total_seconds(tmp_path) == {"step": 9.0, "down": down}


def test_the_process_was_born_before_now():
    assert 0.0 < now() - read_process_start() < 24 * 3600.0
