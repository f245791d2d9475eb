"""Verdicts on paired differences, held against SciPy, simulation and known curves."""

import numpy as np
import pytest
from scipy import stats

from lmx.config.registry import ConfigError
from lmx.study.comparison import find_level, judge, measure_speedup


def test_the_interval_is_that_of_scipys_paired_t_test():
    a, b = np.random.default_rng(0).normal(size=(2, 7))
    test = stats.ttest_rel(b, a)
    low, high = test.confidence_interval(0.95)
    mean = judge((b - a).tolist()).mean
    assert mean.low == pytest.approx(low) and mean.high == pytest.approx(high)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([-3, -2, -4], "better"), ([3, 2, 4], "worse"), ([-3, 2, 1], "cannot tell")],
)
def test_a_lower_loss_is_better_where_the_interval_excludes_none(values, verdict):
    assert judge(values).verdict == verdict
    assert judge([0.0, 0.0]).verdict == "cannot tell"


def look(draws, most):
    """At which rows of draws any look of a sequential test finds a difference."""
    pairs = np.arange(3, most + 1)
    p = np.transpose([stats.ttest_1samp(draws[:, :n], 0, axis=1)[1] for n in pairs])
    return (p < [find_level(n, most) for n in pairs]).any(axis=1)


@pytest.mark.parametrize("most", [3, 10])
def test_equal_experiments_are_called_different_at_any_look_in_5_percent(most):
    draws = np.random.default_rng(1).normal(size=(20_000, most))
    rate = look(draws, most).mean()
    assert 0.043 < rate < 0.0533  # three standard errors around 4.87%


def test_a_sequential_test_has_most_of_the_power_of_a_test_of_all_pairs():
    draws = np.random.default_rng(2).normal(1.0, size=(4000, 10))
    full = (np.array(stats.ttest_1samp(draws, 0, axis=1))[1] < 0.05).mean()
    assert 0.85 * full < look(draws, 10).mean() < full


def test_the_forecast_of_seeds_has_80_percent_power_by_the_noncentral_t():
    result = judge([-1.0, 0.6, -0.9, 0.1])
    assert result.verdict == "cannot tell" and result.more_pairs is not None
    effect = abs(result.mean.value) / result.deviation

    def find_power(n):
        limit = stats.t.isf(0.025, n - 1)
        return stats.nct.sf(limit, n - 1, effect * np.sqrt(n))

    total = result.pairs + result.more_pairs
    assert find_power(total - 1) < 0.81 and find_power(total) > 0.79
    assert judge([-1.0, 1.001]).more_pairs is None


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7, 3.0])
def test_a_curve_that_falls_faster_by_a_factor_has_that_speedup(factor):
    tokens = np.linspace(0.01, 1.0, 400) * 1e6
    a, b = (tokens, np.exp(-tokens / 1e6)), (tokens, np.exp(-factor * tokens / 1e6))
    assert measure_speedup(a, b) == pytest.approx(factor, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "most", "message"),
    [
        ([1.0], None, "1 pairs of seeds: a test has 2 to any number"),
        ([1.0, 2.0], 9, "2 pairs of seeds: a test has 3 to 9"),
        ([1.0] * 5, 4, "5 pairs of seeds: a test has 3 to 4"),
        ([1.0] * 3, 51, "at most 51 seeds: a sequential test has 3 to 50"),
    ],
)
def test_numbers_of_seeds_that_no_test_has_are_refused(values, most, message):
    with pytest.raises(ConfigError, match=message):
        judge(values, most)
