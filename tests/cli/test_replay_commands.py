"""The verbs that look back at a run, and make it again."""

import json

import pytest

from lmx.analysis.history import RecordedRun

pytestmark = pytest.mark.faults

OPENED: dict[str, RecordedRun] = {}  # runs without bindings: each is compiled once


@pytest.fixture
def there(trained, monkeypatch):
    """Where the run was started."""

    def opened(folder, overrides):
        assert not overrides
        if f"{folder}" not in OPENED:
            OPENED[f"{folder}"] = real(folder)
        return OPENED[f"{folder}"]

    real = RecordedRun.open
    monkeypatch.setattr(RecordedRun, "open", opened)
    monkeypatch.chdir(trained.work)
    return trained.run


def test_a_replay_shows_what_was_logged_beside_what_is_measured_now(lmx, there):
    status, said, _ = lmx("replay", there, "--step", "3")
    assert status == 0 and "compared: all equal to the bit" in said
    status, said, _ = lmx("replay", there, "--step", "2", "--json")
    found = json.loads(said)
    assert status == 0 and found["equal"] and found["bound"] == []
    assert found["from"] == 0 and found["replayed"] == found["logged"]
    assert found["logged"]["2"]["learning_rate"] == pytest.approx(0.01)


def test_a_number_that_was_not_so_is_exit_status_1(lmx, there, monkeypatch):
    past = OPENED.get(there) or RecordedRun.open(there, [])
    row = {**past.logged_metrics[3], "loss": 1.0}
    monkeypatch.setitem(past.__dict__, "logged", {**past.logged_metrics, 3: row})
    status, said, _ = lmx("replay", there, "--step", "3")
    assert status == 1 and "1 differ, the first at step 3 (loss)" in said


def test_why_shows_documents_and_tokens(lmx, there, tmp_path):
    html = tmp_path / "batch.html"
    status, said, _ = lmx(
        "why", there, "--step", "2", "--top", "3", "--html", f"{html}"
    )
    assert status == 0 and "step 2: " in said and "layer 1" in said
    assert "corpus: " in said and html.read_text().startswith("<!doctype html>")
    *_, first, second, third = said.splitlines()
    assert first > second > third and all("[" in line for line in (first, second))


def test_a_run_made_again_is_compared_with_its_card(lmx, there, tmp_path):
    words = ["reproduce", there, "--steps", "2", "--run", str(tmp_path / "again")]
    status, said, _ = lmx(*words)
    assert status == 0 and "2 losses up to step 2, the same to the bit: all are" in said
    status, _, moaned = lmx(*words)
    assert status == 2 and "is there: name a new folder" in moaned


def test_what_is_no_run_cannot_be_looked_back_at(lmx, work):
    status, _, moaned = lmx("replay", "nowhere", "--step", "1")
    assert status == 2 and "nowhere is not a run" in moaned
    status, _, moaned = lmx("reproduce", "nowhere")
    assert status == 2 and "nowhere is no card" in moaned
