"""What is due beside the training is done, once, however often a run is killed."""

import json
import shutil

import jax.numpy as jnp
import pytest

from lmx.run.ledger import read_ledger
from lmx.run.run_dir import RunDir, read_metrics
from lmx.run.timing import TimeAccounting, total_seconds
from lmx.train.hook import ScheduledHook
from lmx.train.hooks.runner import SAVE, HookRunner, unique_names
from lmx.train.step import TrainState
from lmx.train.trainer import train_run

WORDS = [
    "Mesh.data=1",
    "Experiment.steps=8",
    "Experiment.hooks=[@Evaluate(), @late/Evaluate()]",
    "Evaluate.data=@RepeatTask()",
    "Evaluate.every=4",
    "late/Evaluate.name=late",
]


def state_of(step):
    return TrainState(jnp.int32(step), {}, ())


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def chores(tmp_path):
    """Chores after a restore at a step: what they did, and one that dies if told."""

    opened = []

    def chores(step, dies="", fails="", flush=None):
        directory = RunDir(tmp_path)
        opened.append(directory)
        directory.truncate_after(step)

        def hook(name):
            def do(done, state, metrics):
                directory.log_metrics(done, {name: done})
                if name == dies:
                    raise Killed
                if name == fails:
                    raise ValueError("no such luck")

            return ScheduledHook(lambda done: done % 2 == 0, do)

        account = TimeAccounting()
        account.start_attempt(directory, step)
        hooks = {name: hook(name) for name in (SAVE, "A", "B", "C")}
        return HookRunner(hooks, lambda: flush and flush(directory), directory, account)

    yield chores
    for directory in opened:
        directory.close()


def written(path):
    return [(r["step"], r["hook"], r["status"]) for r in read_ledger(path)]


def logged(path):
    return [(row["step"], list(row)[1]) for row in read_metrics(path)]


def test_the_ledger_says_what_was_due_and_what_was_done(chores, tmp_path):
    do = chores(0)
    for done in (1, 2, 3):
        do(done, state_of(done), {})
    ended = [(2, SAVE, "started"), (2, "A", "done"), (2, "B", "done"), (2, "C", "done")]
    assert written(tmp_path)[4:] == ended
    assert written(tmp_path)[:4] == [(2, name, "due") for _, name, _ in ended]
    assert total_seconds(tmp_path).keys() >= {SAVE, "A", "B", "C"}


@pytest.mark.parametrize("dies", ["A", "B", "C"])
def test_what_a_kill_prevented_is_done_first_and_nothing_is_logged_twice(
    chores, tmp_path, dies
):
    with pytest.raises(Killed):
        chores(0, dies=dies)(2, state_of(2), {})
    chores(2).run_pending(state_of(2))
    assert logged(tmp_path) == [(2, name) for name in (SAVE, "A", "B", "C")]
    done = [what for _, what, state in written(tmp_path) if state == "done"]
    assert done == ["A", "B", "C"]
    chores(2).run_pending(state_of(2))
    assert len(logged(tmp_path)) == 4


def test_a_state_saved_after_what_was_due_keeps_the_metrics_of_its_step(
    chores, tmp_path
):
    """Saved by a signal's stop, that is: they are written before what is due."""
    flush = chores(0, flush=lambda directory: directory.log_metrics(2, {"loss": 0.5}))
    flush(2, state_of(2), {})
    chores(2)
    assert logged(tmp_path)[0] == (2, "loss") and len(logged(tmp_path)) == 5


def test_before_the_first_step_nothing_is_owed(chores, tmp_path):
    chores(0).run_pending(state_of(0))
    assert written(tmp_path) == []


def test_the_ledger_forgets_what_came_after_the_step_a_run_is_taken_up_at(
    chores, tmp_path
):
    do = chores(2)
    for done in (2, 4):
        do(done, state_of(done), {})
    chores(2)
    assert {step for step, *_ in written(tmp_path)} == {2}


def test_a_hook_that_fails_is_named_with_its_step_and_still_due(chores, tmp_path):
    with pytest.raises(ValueError) as failed:
        chores(0, fails="B")(2, state_of(2), {})
    assert failed.value.__notes__ == ["@B failed after step 2, and is still due."]
    assert written(tmp_path)[-1] == (2, "B", "failed")
    assert read_ledger(tmp_path)[-1]["reason"] == "ValueError: no such luck"
    chores(2).run_pending(state_of(2))
    assert logged(tmp_path) == [(2, name) for name in (SAVE, "A", "B", "C")]


def test_two_hooks_of_one_class_have_two_names(tiny):
    words = [*WORDS, "Experiment.hooks=[@Evaluate(), @Sample(), @late/Evaluate()]"]
    hooks = tiny(*words).build().hooks
    assert list(unique_names(hooks)) == ["Evaluate", "Sample", "Evaluate 2"]
    assert tuple(unique_names(hooks).values()) == hooks


def test_an_evaluation_between_whose_save_and_it_a_run_was_killed_is_not_skipped(
    tiny, tmp_path
):
    config = tiny(*WORDS)
    whole = train_run("tiny", config, tmp_path / "whole").path
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    ledger = (cut / "ledger.jsonl").read_text().splitlines(keepends=True)
    lost = [line for line in ledger if json.loads(line)["step"] == 8]
    assert [json.loads(line)["hook"] for line in lost][-2:] == [
        "Evaluate",
        "Evaluate 2",
    ]
    # Killed after the evaluation was logged, and before the ledger knew.
    (cut / "ledger.jsonl").write_text("".join(ledger[:-2]))
    card = json.loads((cut / "metadata.json").read_text())
    del card["final"]
    (cut / "metadata.json").write_text(json.dumps(card))
    train_run("tiny", config, cut)
    found, wanted = (
        [r for r in read_metrics(p) if "loss" not in r] for p in (cut, whole)
    )
    assert found == wanted and [len(r) for r in found] == [4] * 4
    assert written(cut)[-2:] == [(8, "Evaluate", "done"), (8, "Evaluate 2", "done")]
