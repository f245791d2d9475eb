"""A certificate says what holds, and names what does not."""

import copy

import pytest

from lmx.faulttest.certificate import passed
from lmx.faulttest.report import format_report


def alike(compared):
    return {"compared": compared, "differ": [], "absent": [], "holds": True}


LIFE = {"place": "1 process of 1 device, mesh as in the page", "began": 8}
NEAR = {"compared": 24, "tolerance": 1e-4, "worst": 3e-7, "at": 7, "absent": []}
GOOD = {
    "page": "x.gin",
    "words": ["A.b=1"],
    "run_id": "abc",
    "steps": 24,
    "save_every": 4,
    "devices": "1 x cpu",
    "commit": None,
    "uncommitted": None,
    "versions": {"jax": "0.0"},
    "python": "3",
    "same_mesh": [
        {
            "lives": [LIFE | {"died": "in step 9"}, LIFE | {"died": None}],
            "losses": alike(25),
            "metrics": alike(90),
            "batches": alike(25),
            "state": alike(39),
            "replays": {
                "compared": 1,
                "each": [{"steps": 1, "in_flight": 0, "most": 4}],
                "holds": True,
            },
            "account": {"seconds": {"start": 2.0, "step": 1.0}, "wall": 3.1},
        }
    ],
    "other_mesh": {
        "lives": [LIFE | {"died": None}],
        "losses": NEAR | {"holds": True},
        "batches": alike(24),
        "parameters": {"all": 1e-7, "most": 2e-7, "tensor": "params.w"},
    },
    "refused": ["2 processes: embed is not divided\nmore"],
    "seconds": 12.0,
}


def test_what_holds_is_told_in_numbers():
    said = format_report({"holds": passed(GOOD)} | GOOD)
    assert said.startswith("holds: x.gin A.b=1\n")
    for part in (
        "killed 1 times, same mesh",
        "from step 8, killed in step 9",
        "    25 losses of steps",
        "done again: 1 steps after 1 kills, at most 1",
        "account: 3.0 of 3.1 s: start 2.0, step 1.0",
        "within 0.0001, relative: 24 losses of steps, at most 3.0e-07 off, at 7",
        "refused: 2 processes: embed is not divided\n",
    ):
        assert part in said


@pytest.mark.parametrize("what", ["losses", "metrics", "batches", "state"])
def test_what_differs_is_named_and_the_whole_does_not_hold(what):
    bad = copy.deepcopy(GOOD)
    bad["same_mesh"][0][what] |= {"differ": ["9: 1.5 and not 1.25"], "holds": False}
    assert not passed(bad)
    said = format_report({"holds": False} | bad)
    assert said.startswith("DOES NOT HOLD")
    assert "NOT " in said and "9: 1.5 and not 1.25" in said


def test_what_is_too_far_or_done_again_too_often_does_not_hold():
    far, often = copy.deepcopy(GOOD), copy.deepcopy(GOOD)
    far["other_mesh"]["losses"]["holds"] = False
    often["same_mesh"][0]["replays"] |= {
        "each": [{"steps": 9, "in_flight": 0, "most": 4}],
        "holds": False,
    }
    assert not passed(far) and not passed(often)
    assert "NOT within 0.0001" in format_report({"holds": False} | far)
    assert "EXCEEDED" in format_report({"holds": False} | often)


def test_where_there_was_no_other_device_it_says_so():
    alone = GOOD | {"other_mesh": None, "refused": []}
    assert passed(alone)
    assert "nothing was shown of another mesh" in format_report({"holds": True} | alone)
