"""Tests of weighted interleaving, against plain counting."""

from fractions import Fraction

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.sampling.mixture import WeightedInterleave, integer_ratio

WEIGHTS = pytest.mark.parametrize(
    "weights",
    [
        (1,), (1, 1), (0.6, 0.3, 0.1), (0.7, 0.2, 0.1), (0.98, 0.01, 0.01), (5, 0, 3),
        (0.123, 0.456, 0.321, 0.1), tuple(range(1, 12)), (100, *[1] * 9),
    ],
    ids=str,
)  # fmt: skip


@WEIGHTS
def test_every_source_is_always_within_one_turn_of_its_share(weights):
    interleave = WeightedInterleave(weights)
    shares = [Fraction(share, sum(interleave.ratio)) for share in interleave.ratio]
    source, nth = interleave.assign(np.arange(2 * len(interleave.cycle)))
    counts = [0] * len(weights)
    for n, (i, before) in enumerate(zip(source.tolist(), nth.tolist(), strict=True)):
        assert interleave.count_before(n).tolist() == counts and before == counts[i]
        counts[i] += 1
        for count, share in zip(counts, shares, strict=True):
            assert abs(count - (n + 1) * share) < 1
    assert counts == [2 * share for share in interleave.ratio]


@WEIGHTS
def test_a_late_turn_needs_no_earlier_ones(weights):
    interleave = WeightedInterleave(weights)
    late = 10**12 * len(interleave.cycle)
    source, nth = interleave.assign(late + np.arange(5))
    assert source.tolist() == interleave.assign(np.arange(5))[0].tolist()
    counts = [10**12 * share for share in interleave.ratio]
    assert interleave.count_before(late).tolist() == counts
    assert (nth >= np.array(interleave.ratio)[source] * 10**12).all()


@pytest.mark.parametrize(
    ("weights", "ratio"),
    [
        ((0.6, 0.3, 0.1), [6, 3, 1]),
        ((2, 4), [1, 2]),
        ((1e-3, 1), [1, 1000]),
        ((0.1, 0.0, 0.25), [2, 0, 5]),
    ],
)
def test_weights_are_read_as_decimal_numbers(weights, ratio):
    assert integer_ratio(weights) == ratio


def test_weights_with_a_long_period_are_refused():
    with pytest.raises(ConfigError, match="period of 1234567 rows, and 100000"):
        integer_ratio([1, 1234566])
