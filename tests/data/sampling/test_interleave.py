"""Turns by weight, against plain counting."""

from fractions import Fraction

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.sampling.interleave import WeightedInterleave, integer_ratio

WEIGHTS = pytest.mark.parametrize(
    "weights",
    [
        (1,), (1, 1), (0.6, 0.3, 0.1), (0.7, 0.2, 0.1), (0.98, 0.01, 0.01), (5, 0, 3),
        (0.123, 0.456, 0.321, 0.1), tuple(range(1, 12)), (100, *[1] * 9),
    ],
    ids=str,
)  # fmt: skip


@WEIGHTS
def test_no_part_is_ever_a_turn_off_its_share(weights):
    turns = WeightedInterleave(weights)
    shares = [Fraction(share, sum(turns.ratio)) for share in turns.ratio]
    part, nth = turns.assign(np.arange(2 * len(turns.cycle)))
    taken = [0] * len(weights)
    for n, (i, before) in enumerate(zip(part.tolist(), nth.tolist(), strict=True)):
        assert turns.count_before(n) == taken and before == taken[i]
        taken[i] += 1
        for count, share in zip(taken, shares, strict=True):
            assert abs(count - (n + 1) * share) < 1
    assert taken == [2 * share for share in turns.ratio]


@WEIGHTS
def test_a_late_turn_is_known_at_once(weights):
    turns = WeightedInterleave(weights)
    late = 10**12 * len(turns.cycle)
    part, nth = turns.assign(late + np.arange(5))
    assert part.tolist() == turns.assign(np.arange(5))[0].tolist()
    assert turns.count_before(late) == [10**12 * share for share in turns.ratio]
    assert (nth >= np.array(turns.ratio)[part] * 10**12).all()


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ((0.6, 0.3, 0.1), [6, 3, 1]),
        ((2, 4), [1, 2]),
        ((1e-3, 1), [1, 1000]),
        ((0.1, 0.0, 0.25), [2, 0, 5]),
    ],
)
def test_weights_are_what_their_digits_say(weights, shares):
    assert integer_ratio(weights) == shares


def test_weights_that_come_out_even_too_late_are_refused():
    with pytest.raises(ConfigError, match="exact after 1234567 rows, and 100000"):
        integer_ratio([1, 1234566])
