"""`lmx prove` refuses what it cannot prove, and says what it asks of the page."""

import json

import pytest

from lmx.faulttest import runner


@pytest.fixture
def asked(monkeypatch):
    """What a proof was asked for; it finds that nothing holds."""
    found = []

    def prove(trial, config, moments, **facts):
        found.append((trial, config, moments, facts))
        return {"holds": False}

    monkeypatch.setattr(runner, "run_faulttest", prove)
    return found


@pytest.mark.parametrize(
    "words, said",
    [
        (["--kills", "0"], "--kills 0: at least 1"),
        (["--steps", "0"], "Experiment.steps is 0: at least 1"),
        (["--out", "."], "is not empty: name another --out"),
        (["CheckpointPolicy.evry=3"], "'evry'"),
    ],
    ids=str,
)
def test_what_cannot_be_proved_is_refused(lmx, work, asked, words, said):
    status, _, moaned = lmx("prove", "tiny.gin", *words)
    assert status == 2 and said in moaned and not asked


def test_a_proof_saves_at_least_twice_a_kill_and_fails_with_1(lmx, work, asked):
    words = ["--steps", "40", "--kills", "5", "--seed", "3", "--out", "out", "--json"]
    status, said, _ = lmx("prove", "tiny.gin", "RepeatTask.batch_size=4", *words)
    assert status == 1 and json.loads(said) == {"holds": False}
    ((trial, config, moments, facts),) = asked
    assert trial.words == ["RepeatTask.batch_size=4", "Experiment.steps=40"]
    assert len(moments) == 5 and facts == {"seed": 3}
    assert trial.folder == work / "out" and trial.page == str(work / "tiny.gin")
    lmx("prove", "tiny.gin", "--steps", "12", "--kills", "6", "--json")
    trial, config, *_ = asked[1]
    assert "CheckpointPolicy.every=1" in trial.words and config["checkpoint.every"] == 1
    assert trial.folder == work / "runs" / f"proof-tiny-{config.run_id()}"
