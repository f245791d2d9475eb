"""`lmx replay`, `lmx inspect` and `lmx reproduce`."""

import json

import pytest

from lmx.analysis.replay import RecordedRun

pytestmark = pytest.mark.faults

OPENED: dict[str, RecordedRun] = {}  # runs without overrides: each is compiled once


@pytest.fixture
def run(trained, monkeypatch):
    """The run, with its working folder as the current one."""

    def open_once(folder, overrides):
        assert not overrides
        if f"{folder}" not in OPENED:
            OPENED[f"{folder}"] = open_run(folder)
        return OPENED[f"{folder}"]

    open_run = RecordedRun.open
    monkeypatch.setattr(RecordedRun, "open", open_once)
    monkeypatch.chdir(trained.work)
    return trained.run


def test_a_replay_shows_logged_and_new_values_side_by_side(lmx, run):
    status, out, _ = lmx("replay", run, "--step", "3")
    assert status == 0 and "compared: all equal to the bit" in out
    status, out, _ = lmx("replay", run, "--step", "2", "--json")
    result = json.loads(out)
    assert status == 0 and result["equal"] and result["overridden"] == []
    assert result["checkpoint"] == 0 and result["replayed"] == result["logged"]
    assert result["logged"]["2"]["learning_rate"] == pytest.approx(0.01)


def test_a_value_that_differs_is_exit_status_1(lmx, run, monkeypatch):
    recorded = OPENED.get(run) or RecordedRun.open(run, [])
    row = {**recorded.logged_metrics[3], "loss": 1.0}
    logged = {**recorded.logged_metrics, 3: row}
    monkeypatch.setattr(RecordedRun, "logged_metrics", logged)
    status, out, _ = lmx("replay", run, "--step", "3")
    assert status == 1 and "1 differ, the first at step 3 (loss)" in out


def test_inspect_shows_documents_and_tokens(lmx, run, tmp_path):
    html = tmp_path / "batch.html"
    status, out, _ = lmx(
        "inspect", run, "--step", "2", "--top", "3", "--html", f"{html}"
    )
    assert status == 0 and "step 2: " in out and "layer 1" in out
    assert "corpus" in out and html.read_text().startswith("<!doctype html>")
    *_, first, second, third = out.splitlines()
    assert first > second > third and all("[" in line for line in (first, second))


def test_a_reproduced_run_is_compared_with_its_metadata(lmx, run, tmp_path):
    words = ["reproduce", run, "--steps", "2", "--run", str(tmp_path / "again")]
    status, out, _ = lmx(*words)
    assert status == 0 and "2 losses up to step 2, equal to the bit: all are" in out
    status, _, err = lmx(*words)
    assert status == 2 and "exists: name a new folder" in err


def test_a_folder_that_is_not_a_run_is_refused(lmx, work):
    status, _, err = lmx("replay", "nowhere", "--step", "1")
    assert status == 2 and "nowhere is not a run" in err
    status, _, err = lmx("reproduce", "nowhere")
    assert status == 2 and "nowhere is not the metadata of a run" in err
