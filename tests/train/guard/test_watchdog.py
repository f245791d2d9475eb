"""What the watchdog takes for progress, and what for a hang."""

import time

from lmx.train.guard import watchdog
from lmx.train.guard.watchdog import Watchdog


def watch(monkeypatch, tmp_path, progress, seconds, timeout=0.2):
    """The stacks that it writes within so many seconds; None if it finds no hang."""
    exits = []
    monkeypatch.setattr(watchdog.os, "_exit", exits.append)
    dog = Watchdog(progress, timeout, tmp_path)
    deadline = time.monotonic() + seconds
    while not exits and time.monotonic() < deadline:
        time.sleep(0.01)
    dog.close()
    if not exits:
        return None
    assert exits[0] == 75
    return (tmp_path / "hang-0.txt").read_text()


def test_it_exits_a_hanging_process_and_writes_its_stacks(monkeypatch, tmp_path, capfd):
    stacks = watch(monkeypatch, tmp_path, lambda: ("save", 0), 20.0)
    assert stacks is not None
    assert "no progress for 0.2 s (in phase 'save')" in stacks
    assert "in watch" in stacks and "no progress" in capfd.readouterr().err


def test_what_progresses_within_the_timeout_continues(monkeypatch, tmp_path):
    """However long a phase lasts, if something in it starts again."""

    def steady():
        return "step", time.monotonic() // 0.05

    assert watch(monkeypatch, tmp_path, steady, 0.6, timeout=0.5) is None


def test_a_process_that_was_stopped_did_not_hang(monkeypatch, tmp_path):
    """The watchdog did not run for longer than the timeout: that alone is no hang."""
    now = iter([0.0, *(100.0 * n for n in range(1, 9))])
    last = [0.0]

    def clock():
        last[0] = next(now, last[0])
        return last[0]

    class Clock:
        monotonic, sleep = staticmethod(clock), staticmethod(time.sleep)

    monkeypatch.setattr(watchdog, "time", Clock)
    assert watch(monkeypatch, tmp_path, lambda: ("step", 0), 0.6, 0.4) is None
