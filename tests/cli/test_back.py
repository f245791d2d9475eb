"""The verbs that look back at a run, and make it again."""

import json

import pytest


@pytest.fixture
def there(trained, monkeypatch):
    """Where the run was started."""
    monkeypatch.chdir(trained.work)
    return trained.run


def test_a_replay_shows_what_was_logged_beside_what_is_measured_now(lmx, there):
    status, said, _ = lmx("replay", there, "--step", "3")
    assert status == 0 and "compared: all equal to the bit" in said
    status, said, _ = lmx("replay", there, "--step", "2", "Constant.peak=0.1", "--json")
    found = json.loads(said)
    assert status == 0 and found["bound"] == ["schedule.peak"]
    assert found["from"] == 0 and not found["equal"]
    assert found["replayed"]["2"]["learning_rate"] == pytest.approx(0.1)
    assert found["logged"]["2"]["learning_rate"] == pytest.approx(0.01)


def test_what_is_no_run_cannot_be_looked_back_at(lmx, work):
    status, _, moaned = lmx("replay", "nowhere", "--step", "1")
    assert status == 2 and "nowhere is no run" in moaned
