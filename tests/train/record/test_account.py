"""Every second of a run is in one state, and none is left over."""

import json
import os
import time

import pytest

from lmx.train.record import account as module
from lmx.train.record.account import Account, born, died, entries, now, total
from lmx.train.record.directory import Directory


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when told; the wall's clock jumps about meanwhile."""

    class Clock:
        def __init__(self):
            self.seconds, self.walls = 100.0, iter(range(10**9, 0, -12345))

        def go(self, seconds):
            self.seconds += seconds

    clock = Clock()
    monkeypatch.setattr(module, "now", lambda: clock.seconds)
    monkeypatch.setattr(time, "time", lambda: float(next(clock.walls)))
    return clock


@pytest.fixture
def begin(tmp_path, clock):
    """Begins an attempt at the run in a folder, at a step."""

    def begin(step, since=None):
        account = Account(since)
        clock.go(2.0)
        account.begin(Directory(tmp_path), step)
        account.enter("step")
        return account

    return begin


def whole(path):
    """Seconds from the first beginning to the last note."""
    first, *_, last = [row for row in entries(path)]
    return last["clock"] - first["began"]


def test_states_nest_and_none_counts_for_two(clock):
    account = Account()
    clock.go(1.0)
    with account.within("step"):
        clock.go(2.0)
        with account.within("data"):
            clock.go(4.0)
        clock.go(8.0)
    clock.go(16.0)
    spent = {state: account.spent(state) for state in ("start", "step", "data")}
    assert spent == {"start": 17.0, "step": 10.0, "data": 4.0}
    assert account.spent("step", "data") == 14.0


def test_a_state_ends_with_what_is_raised_in_it(clock):
    account = Account()
    with pytest.raises(ValueError), account.within("Evaluate"):
        clock.go(1.0)
        raise ValueError
    clock.go(2.0)
    assert account.spent("Evaluate") == 1.0 and account.spent("start") == 2.0


def test_attempts_and_what_lies_between_add_up_to_the_whole(tmp_path, clock, begin):
    account = begin(0)
    clock.go(10.0)
    account.note(4)
    with account.within("compile"):
        clock.go(3.0)
    clock.go(5.0)
    account.note(6)  # then it is killed, two seconds later
    clock.go(2.0)
    died(tmp_path, os.getpid(), -9)
    clock.go(20.0)
    account = begin(4)
    clock.go(7.0)
    account.note(6)
    assert total(tmp_path) == {
        "start": 4.0, "step": 17.0, "compile": 3.0, "lost": 7.0, "down": 20.0,
    }  # fmt: skip
    assert sum(total(tmp_path).values()) == whole(tmp_path) == 51.0


def test_a_death_that_nobody_saw_is_time_between_attempts(tmp_path, clock, begin):
    begin(0)
    clock.go(3.0)
    begin(0)
    assert total(tmp_path) == {"start": 4.0, "down": 3.0}


def test_the_time_before_the_account_is_that_of_the_start(tmp_path, clock, begin):
    begin(0, since=40.0)
    assert total(tmp_path) == {"start": 62.0}


def test_work_is_lost_once_however_often_a_run_falls_back(tmp_path, clock, begin):
    for step in (0, 2, 0):
        account = begin(step)
        clock.go(1.0)
        account.note(step + 2)
    found = total(tmp_path)
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
    assert total(tmp_path) == {"step": 9.0, "down": down}


def test_the_process_was_born_before_now():
    assert 0.0 < now() - born() < 24 * 3600.0
