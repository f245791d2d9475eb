"""`lmx faulttest`: its arguments and its exit status."""

import json

import pytest

from lmx.faulttest import report, scenario


@pytest.fixture
def calls(monkeypatch):
    """The calls of the fault test, which fails."""
    calls_ = []

    def run(scenario, kills, **options):
        calls_.append((scenario, kills, options))
        return {"passed": False}

    monkeypatch.setattr(scenario, "run_faulttest", run)
    monkeypatch.setattr(report, "format_report", str)
    return calls_


@pytest.mark.parametrize(
    "words, out",
    [
        (["--kills", "0"], "--kills 0: at least 1"),
        (["--steps", "0"], "Experiment.steps is 0: it must be above 0"),
        (["--out", "."], "is not empty: name another --out"),
        (["CheckpointPolicy.evry=3"], "'evry'"),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused(lmx, work, calls, words, out):
    status, _, err = lmx("faulttest", "tiny.gin", *words)
    assert status == 2 and out in err and not calls


def test_it_saves_at_least_twice_per_kill_and_fails_with_1(lmx, work, calls):
    words = ["--steps", "40", "--kills", "5", "--seed", "3", "--out", "out", "--json"]
    status, out, _ = lmx("faulttest", "tiny.gin", "RepeatTask.batch_size=4", *words)
    assert status == 1 and json.loads(out) == {"passed": False}
    ((scenario, kills, options),) = calls
    assert scenario.overrides == ["RepeatTask.batch_size=4", "Experiment.steps=40"]
    assert len(kills) == 5 and options == {"seed": 3}
    assert scenario.folder == work / "out" and scenario.file == str(work / "tiny.gin")
    lmx("faulttest", "tiny.gin", "--steps", "12", "--kills", "6", "--json")
    scenario, *_ = calls[1]
    assert "CheckpointPolicy.every=1" in scenario.overrides
    assert scenario.config["checkpoint.every"] == 1
    name = f"faulttest-tiny-{scenario.config.run_id()}"
    assert scenario.folder == work / "runs" / name
