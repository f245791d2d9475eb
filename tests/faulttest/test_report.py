"""Differences are found and named, and equal values are counted."""

import copy
import math

import jax
import numpy as np
import pytest

from lmx.faulttest.report import (
    compare,
    compare_states,
    count_in_flight,
    count_replayed,
    format_report,
    passed,
    select_metrics,
)
from lmx.train.checkpoint.manager import CheckpointManager
from tests.train.checkpoint.damage import flip


def steps(first, last, batch=lambda step: step):
    return [{"step": n, "batch": f"{batch(n):016x}"} for n in range(first, last + 1)]


def test_equal_parts_that_cover_all_values_pass():
    expected = {1: "a", 2: "b", 3: math.nan}
    found = compare([{1: "a", 2: "b"}, {2: "b", 3: math.nan}], expected)
    assert found["passed"] and found["compared"] == 4
    assert found["differ"] == found["absent"] == []


@pytest.mark.parametrize(
    "parts, differ, absent",
    [
        ([{1: "a", 2: "c"}], ["2: c, expected b"], []),
        ([{1: "a"}, {1: "x", 2: "b"}], ["1: x, expected a"], []),
        ([{1: "a"}], [], ["2"]),
        ([{1: "a", 2: "b", 3: "c"}], ["3: c, expected None"], []),
    ],
)
def test_differences_and_absent_values_are_named(parts, differ, absent):
    found = compare(parts, {1: "a", 2: "b"})
    assert (found["differ"], found["absent"]) == (differ, absent)
    assert not found["passed"]


def test_a_comparison_of_nothing_does_not_pass():
    assert not compare([], {})["passed"]
    assert not compare([], {}, 1.0)["passed"]


def test_the_largest_error_decides_and_is_named():
    expected = {1: 2.0, 2: -4.0}
    found = compare([{1: 2.0, 2: -4.002}], expected, 1e-3)
    assert found["largest_error"] == pytest.approx(5e-4) and found["at"] == "2"
    assert found["passed"]
    assert not compare([{1: 2.0, 2: -4.002}], expected, 1e-4)["passed"]
    assert not compare([{1: 2.0}], expected, 1.0)["passed"]
    assert not compare([{1: 2.0, 2: math.nan}], expected, 1.0)["passed"]
    assert not compare([{1: 2.0, 2: -4.0, 3: 1.0}], expected, 1.0)["passed"]


def test_metrics_of_speed_are_not_compared():
    row = {"step": 4, "loss": 1.5, "seconds/step": 0.1, "tokens_per_second": 3.0}
    rows = [row, {"step": 4, "validation/nats": 2.0}]
    assert select_metrics(rows) == {(4, "loss"): 1.5, (4, "validation/nats"): 2.0}
    assert select_metrics(rows, rtol=1e-4) == {(4, "validation/nats"): 2.0}


def test_states_are_compared_tensor_by_tensor_and_verified_on_disk(tmp_path):
    state = {"params": {"w": np.ones((64, 64), np.float32)}, "step": np.zeros((), int)}
    near = {**state, "params": {"w": state["params"]["w"] + np.float32(1e-3)}}
    for name, value in {"a": state, "same": state, "near": near}.items():
        manager = CheckpointManager(tmp_path / name / "checkpoints")
        manager.save(3, jax.tree.map(jax.numpy.asarray, value))
        manager.wait()
    a, same, close = (tmp_path / name for name in ("a", "same", "near"))
    found = compare_states(same, a, 3, 0.0)
    assert found["passed"] and (found["compared"], found["distance"]) == (2, 0.0)
    found = compare_states(close, a, 3, 0.0)
    assert not found["passed"] and found["differ"] == ["params.w: differs"]
    found = compare_states(close, a, 3, 1e-4)
    assert found["passed"] and found["at"] == "params.w"
    assert found["distance"] == pytest.approx(1e-3, rel=0.01)
    assert found["distance"] == pytest.approx(found["largest_error"])
    flip(a / "checkpoints" / "00000003", "params.w")
    found = compare_states(same, a, 3, 0.0)
    assert (
        not found["passed"] and "params.w is not what was saved" in found["differ"][0]
    )


def test_steps_in_flight_count_from_the_oldest_uncommitted_save(attempt):
    trace = [*steps(1, 4), {"saving": 4}, *steps(5, 6)]
    assert count_in_flight(attempt(trace)) == 2
    assert count_in_flight(attempt([*trace, {"saved": 4}, *steps(7, 8)])) == 0
    both = [*trace, *steps(7, 8), {"saving": 8}]
    assert count_in_flight(attempt(both)) == 4
    assert count_in_flight(attempt([*both, {"saved": 4}, *steps(9, 9)])) == 1


def test_repeated_steps_are_counted_and_bounded(attempt):
    trace = [{"from_step": 0}, *steps(1, 4), {"saving": 4}, *steps(5, 6)]
    no_step, complete = attempt([]), attempt([{"from_step": 0}, *steps(1, 10)])
    found = count_replayed([attempt(trace), no_step, complete], save_every=4)
    assert found == {"passed": True, "each": [{"steps": 6, "allowed": 6}]}
    committed = attempt([*trace[:-2], {"saved": 4}, *steps(5, 6)])
    assert not count_replayed([committed, complete], save_every=4)["passed"]


def test_batches_add_up_over_processes_without_the_incomplete_last_steps(attempt):
    first, second = steps(1, 5, lambda n: 2**64 - 1), steps(1, 3, lambda n: n + 1)
    assert attempt(first, second).batches == {1: 1, 2: 2, 3: 3}


def equal(compared):
    return {
        "passed": True,
        "compared": compared,
        "largest_error": 0.0,
        "at": None,
        "differ": [],
        "absent": [],
    }


ATTEMPT = {"topology": "1 process of 1 device, mesh of the config", "start_step": 8}
NEAR = {"rtol": 1e-4, "largest_error": 3e-7, "at": "7"}
REST = {
    "replayed": {"passed": True, "each": [{"steps": 1, "allowed": 4}]},
    "timing": {"seconds": {"start": 2.0, "step": 1.0}, "wall": 3.1},
}
GOOD = {
    "config": "x.gin",
    "overrides": ["A.b=1"],
    "steps": 24,
    "save_every": 4,
    "environment": {
        "run_id": "abc",
        "devices": "1 x cpu",
        "commit": None,
        "uncommitted": None,
        "versions": {"jax": "0.0"},
        "python": "3",
    },
    "same_mesh": [
        {
            "attempts": [ATTEMPT | {"killed": "in step 9"}, ATTEMPT | {"killed": None}],
            **{name: equal(25) for name in ("losses", "metrics", "batches", "state")},
            **REST,
        }
    ],
    "other_mesh": {
        "attempts": [ATTEMPT | {"killed": None}],
        "losses": equal(24) | NEAR,
        "batches": equal(24),
        "state": equal(39) | {"largest_error": 2e-7, "at": "params.w"},
        **REST,
    },
    "refused": ["2 processes: embed is not divided\nmore"],
    "seconds": 12.0,
}


def test_a_report_has_the_numbers_of_all_that_passed():
    text = format_report({"passed": True} | GOOD)
    assert text.startswith("passed: x.gin A.b=1\n")
    for part in (
        "  from step 8, killed in step 9; 1 process of 1 device",
        "  equal: 25 losses of steps\n",
        "  ok: 1 steps repeated after 1 kills",
        "  timing: 3.0 of 3.1 s: start 2.0, step 1.0",
        "equal: 24 losses of steps, largest relative error 3.0e-07 at 7 (tolerance 0.0",
        "largest relative error 2.0e-07 at params.w\n",
        "refused: 2 processes: embed is not divided\n",
    ):
        assert part in text


@pytest.mark.parametrize("name", ["losses", "metrics", "batches", "state"])
def test_a_report_names_what_differs(name):
    bad = copy.deepcopy(GOOD)
    bad["same_mesh"][0][name] |= {"differ": ["9: 1.5, expected 1.25"], "passed": False}
    assert passed(GOOD["same_mesh"][0]) and not passed(bad["same_mesh"][0])
    text = format_report({"passed": False} | bad)
    assert text.startswith("FAILED")
    assert "DIFFERENT: 25" in text and "9: 1.5, expected 1.25" in text


def test_too_large_errors_and_too_many_repeated_steps_fail():
    far, often = copy.deepcopy(GOOD["other_mesh"]), copy.deepcopy(GOOD["same_mesh"][0])
    far["losses"]["passed"] = False
    often["replayed"] = {"passed": False, "each": [{"steps": 9, "allowed": 4}]}
    assert not passed(far) and not passed(often)
    text = format_report({"passed": False, **GOOD, "other_mesh": far})
    assert "DIFFERENT: 24 losses of steps" in text
    text = format_report({"passed": False, **GOOD, "same_mesh": [often]})
    assert "TOO MANY: 9 steps repeated" in text


def test_a_report_says_when_there_was_no_other_mesh():
    text = format_report({"passed": True, **GOOD, "other_mesh": None, "refused": []})
    assert "no other mesh was tested" in text
