"""What counts as progress, and what as a hang."""

import time

from lmx.train.guard import watchdog
from lmx.train.guard.watchdog import Watchdog


def barked(monkeypatch, tmp_path, progress, seconds, patience=0.2):
    """What it told, within so many seconds; None if it found no hang."""
    ends = []
    monkeypatch.setattr(watchdog.os, "_exit", ends.append)
    dog = Watchdog(progress, patience, tmp_path)
    late = time.monotonic() + seconds
    while not ends and time.monotonic() < late:
        time.sleep(0.01)
    dog.close()
    if not ends:
        return None
    assert ends[0] == 75
    return (tmp_path / "hang-0.txt").read_text()


def test_it_ends_what_does_not_move_and_says_where_it_stood(
    monkeypatch, tmp_path, capfd
):
    told = barked(monkeypatch, tmp_path, lambda: ("Save", 0), 20.0)
    assert told is not None
    assert "nothing has moved for 0.2 s (in state 'Save')" in told
    assert "in barked" in told and "nothing has moved" in capfd.readouterr().err


def test_what_moves_within_its_patience_goes_on(monkeypatch, tmp_path):
    """However long a state lasts, if something in it begins anew."""

    def steady():
        return "step", time.monotonic() // 0.05

    assert barked(monkeypatch, tmp_path, steady, 0.6, patience=0.5) is None


def test_a_process_that_was_stopped_did_not_hang(monkeypatch, tmp_path):
    """Nobody looked for longer than the patience: that alone is no hang."""
    now = iter([0.0, *(100.0 * n for n in range(1, 9))])
    last = [0.0]

    def clock():
        last[0] = next(now, last[0])
        return last[0]

    class Clock:
        monotonic, sleep = staticmethod(clock), staticmethod(time.sleep)

    monkeypatch.setattr(watchdog, "time", Clock)
    assert barked(monkeypatch, tmp_path, lambda: ("step", 0), 0.6, 0.4) is None
