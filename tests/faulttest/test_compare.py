"""What differs is found and named, and what is equal is counted."""

import math

import pytest

from lmx.faulttest import compare
from lmx.faulttest.process_group import RunAttempt, Topology


def life(*trace, place=Topology(), others=()):
    return RunAttempt(place, None, 0, [], [0], [list(trace), *others], [], 0.0, 1.0)


def steps(first, last, batch=lambda step: step):
    return [{"step": n, "batch": f"{batch(n):016x}"} for n in range(first, last + 1)]


def test_equal_parts_that_cover_the_whole_are_alike():
    whole = {1: "a", 2: "b", 3: math.nan}
    found = compare.compare_equal([{1: "a", 2: "b"}, {2: "b", 3: math.nan}], whole)
    assert found == {"compared": 4, "differ": [], "absent": [], "holds": True}


@pytest.mark.parametrize(
    "parts, differ, absent",
    [
        ([{1: "a", 2: "c"}], ["2: c and not b"], []),
        ([{1: "a"}, {1: "x", 2: "b"}], ["1: x and not a"], []),
        ([{1: "a"}], [], ["2"]),
        ([{1: "a", 2: "b", 3: "c"}], ["3: c and not None"], []),
    ],
)
def test_what_is_not_alike_is_named(parts, differ, absent):
    found = compare.compare_equal(parts, {1: "a", 2: "b"})
    assert (found["differ"], found["absent"]) == (differ, absent)
    assert not found["holds"]


def test_nothing_compared_shows_nothing():
    assert not compare.compare_equal([], {})["holds"]
    assert not compare.compare_close([], {}, 1.0)["holds"]


def test_the_farthest_is_named_and_decides():
    whole = {1: 2.0, 2: -4.0}
    found = compare.compare_close([{1: 2.0, 2: -4.002}], whole, 1e-3)
    assert found["worst"] == pytest.approx(5e-4) and found["at"] == 2
    assert found["holds"]
    assert not compare.compare_close([{1: 2.0, 2: -4.002}], whole, 1e-4)["holds"]
    assert not compare.compare_close([{1: 2.0}], whole, 1.0)["holds"]
    assert not compare.compare_close([{1: 2.0, 2: math.nan}], whole, 1.0)["holds"]
    assert not compare.compare_close([{1: 2.0, 2: -4.0, 3: 1.0}], whole, 1.0)["holds"]


def test_clocks_are_no_part_of_what_is_compared():
    row = {"step": 4, "loss": 1.5, "seconds/step": 0.1, "tokens_per_second": 3.0}
    assert compare.merge_metrics([row, {"step": 4, "validation/nats": 2.0}]) == {
        (4, "loss"): 1.5,
        (4, "validation/nats"): 2.0,
    }


def test_steps_in_flight_are_those_since_the_oldest_save_without_a_commit():
    trace = [*steps(1, 4), {"saving": 4}, *steps(5, 6)]
    assert compare.count_in_flight(life(*trace)) == 2
    assert compare.count_in_flight(life(*trace, {"saved": 4}, *steps(7, 8))) == 0
    both = [*trace, *steps(7, 8), {"saving": 8}]
    assert compare.count_in_flight(life(*both)) == 4
    assert compare.count_in_flight(life(*both, {"saved": 4}, *steps(9, 9))) == 1


def test_steps_done_again_are_counted_and_bounded():
    first = life({"from_step": 0}, *steps(1, 4), {"saving": 4}, *steps(5, 6))
    unborn = life()
    good = life({"from_step": 0}, *steps(1, 10))
    found = compare.count_replayed([first, unborn, good], every=4)
    assert found["each"] == [{"steps": 6, "in_flight": 2, "most": 6}]
    assert found["holds"] and found["compared"] == 1
    committed = life(*first.traces[0][:-2], {"saved": 4}, *steps(5, 6))
    assert not compare.count_replayed([committed, good], every=4)["holds"]


def test_what_processes_were_fed_adds_up_and_the_last_of_a_killed_one_is_left_out():
    mine, yours = steps(1, 5, lambda n: 2**64 - 1), steps(1, 3, lambda n: n + 1)
    both = life(*mine, others=[yours], place=Topology(2))
    assert both.batch_fingerprints() == {1: 1, 2: 2, 3: 3}
