"""Hooks run in order, and each due one runs once, however often a run is killed."""

import json
import shutil

import jax.numpy as jnp
import pytest

from lmx.run.goodput import TimeAccounting, total_seconds
from lmx.run.run_dir import RunDir, read_ledger, read_metrics
from lmx.train.guard.nonfinite import FaultError
from lmx.train.hook import SAVE, Hook, HookRunner, unique_names
from lmx.train.step import TrainState
from lmx.train.trainer import train_run

OVERRIDES = [
    "Mesh.data=1",
    "Experiment.steps=8",
    "Experiment.hooks=[@Evaluate(), @late/Evaluate()]",
    "Evaluate.data=@RepeatTask()",
    "Evaluate.batches=1",
    "Evaluate.every=4",
    "late/Evaluate.name=late",
]
NAMES = (SAVE, "A", "B", "C")


def state_of(step):
    return TrainState(jnp.int32(step), {}, ())


class KilledError(BaseException):
    """Stands for the death of the process."""


@pytest.fixture
def make_runner(tmp_path):
    """Makes a runner after a restore at a step; hooks log, and one may die or fail."""
    opened = []

    def make_runner(step, dies="", fails="", flush=None):
        run_dir = RunDir(tmp_path)
        opened.append(run_dir)
        run_dir.truncate_after(step)

        def hook(name):
            def call(step, state, metrics):
                run_dir.log_metrics(step, {name: step})
                if name == dies:
                    raise KilledError
                if name == fails:
                    raise ValueError("no such luck")

            return Hook(call=call, is_due=lambda step: step % 2 == 0)

        timing = TimeAccounting()
        timing.start_attempt(run_dir, step)
        hooks = {name: hook(name) for name in NAMES[1:]} | {SAVE: hook(SAVE)}
        return HookRunner(hooks, run_dir, timing, lambda: flush and flush(run_dir))

    yield make_runner
    for run_dir in opened:
        run_dir.close()


def ledger(path):
    return [(row["step"], row["hook"], row["status"]) for row in read_ledger(path)]


def logged(path):
    return [(row["step"], list(row)[1]) for row in read_metrics(path)]


def test_the_ledger_records_what_was_due_and_what_was_done(make_runner, tmp_path):
    runner = make_runner(0)
    for step in (1, 2, 3):
        runner(step, state_of(step), {})
    done = [(2, SAVE, "started"), (2, "A", "done"), (2, "B", "done"), (2, "C", "done")]
    assert ledger(tmp_path)[4:] == done
    assert ledger(tmp_path)[:4] == [(2, name, "due") for name in NAMES]
    assert total_seconds(tmp_path).keys() >= set(NAMES)


def test_a_check_comes_before_the_save_of_its_step_and_may_prevent_it(tmp_path):
    calls = []

    def fail(*_):
        calls.append("check")
        raise FaultError("a bit has flipped", 75)

    hooks = {
        "Sample": Hook(call=lambda *_: calls.append("sample")),
        SAVE: Hook(call=lambda *_: calls.append("save")),
        "Check": Hook(call=fail, is_due=lambda step: step == 2, before_save=True),
    }
    runner = HookRunner(hooks, RunDir(tmp_path), TimeAccounting())
    runner(1, state_of(1), {})
    with pytest.raises(FaultError, match="a bit has flipped"):
        runner(2, state_of(2), {})
    assert calls == ["save", "sample", "check"]


@pytest.mark.parametrize("dies", NAMES[1:])
def test_what_a_kill_prevented_is_done_first_and_nothing_is_logged_twice(
    make_runner, tmp_path, dies
):
    with pytest.raises(KilledError):
        make_runner(0, dies=dies)(2, state_of(2), {})
    make_runner(2).call_pending(state_of(2))
    assert logged(tmp_path) == [(2, name) for name in NAMES]
    done = [name for _, name, status in ledger(tmp_path) if status == "done"]
    assert done == ["A", "B", "C"]
    make_runner(2).call_pending(state_of(2))
    assert len(logged(tmp_path)) == 4


def test_metrics_of_a_step_are_flushed_before_its_hooks(make_runner, tmp_path):
    """So a state that is saved after them has the metrics of its step."""
    runner = make_runner(0, flush=lambda run_dir: run_dir.log_metrics(2, {"loss": 0.5}))
    runner(2, state_of(2), {})
    make_runner(2)
    assert logged(tmp_path)[0] == (2, "loss") and len(logged(tmp_path)) == 5


def test_before_the_first_step_nothing_is_pending(make_runner, tmp_path):
    make_runner(0).call_pending(state_of(0))
    assert ledger(tmp_path) == []


def test_the_ledger_drops_what_came_after_the_step_of_a_resume(make_runner, tmp_path):
    runner = make_runner(2)
    for step in (2, 4):
        runner(step, state_of(step), {})
    make_runner(2)
    assert {step for step, *_ in ledger(tmp_path)} == {2}


def test_a_hook_that_fails_is_named_with_its_step_and_still_due(make_runner, tmp_path):
    with pytest.raises(ValueError) as failed:
        make_runner(0, fails="B")(2, state_of(2), {})
    assert failed.value.__notes__ == ["@B failed after step 2, and is still due."]
    assert ledger(tmp_path)[-1] == (2, "B", "failed")
    assert read_ledger(tmp_path)[-1]["reason"] == "ValueError: no such luck"
    make_runner(2).call_pending(state_of(2))
    assert logged(tmp_path) == [(2, name) for name in NAMES]


def test_two_hooks_of_one_class_have_two_names(tiny):
    hooks = "Experiment.hooks=[@Evaluate(), @Sample(), @late/Evaluate()]"
    configs = tiny(*OVERRIDES, hooks).build().hooks
    assert list(unique_names(configs)) == ["Evaluate", "Sample", "Evaluate 2"]
    assert tuple(unique_names(configs).values()) == configs


@pytest.mark.faults
def test_an_evaluation_is_not_skipped_if_a_run_is_killed_between_save_and_ledger(
    tiny, tmp_path
):
    config = tiny(*OVERRIDES)
    full = train_run("tiny", config, tmp_path / "full").path
    cut = tmp_path / "cut"
    shutil.copytree(full, cut)
    lines = (cut / "ledger.jsonl").read_text().splitlines(keepends=True)
    last = [json.loads(line)["hook"] for line in lines[-2:]]
    assert last == ["Evaluate", "Evaluate 2"] and json.loads(lines[-1])["step"] == 8
    # Killed after the evaluation was logged, and before the ledger recorded it.
    (cut / "ledger.jsonl").write_text("".join(lines[:-2]))
    metadata = json.loads((cut / "metadata.json").read_text())
    del metadata["final"]
    (cut / "metadata.json").write_text(json.dumps(metadata))
    train_run("tiny", config, cut)
    found, expected = (
        [row for row in read_metrics(path) if "loss" not in row] for path in (cut, full)
    )
    assert found == expected and [len(row) for row in found] == [4] * 4
    assert ledger(cut)[-2:] == [(8, "Evaluate", "done"), (8, "Evaluate 2", "done")]
