"""Parabolas, the frontier and power laws against exact and textbook values."""

import numpy as np
import pytest

from lmx.study.isoflop import (
    find_frontier,
    fit_exponent,
    fit_frontier,
    fit_isoflop,
    fit_parabolas,
)
from lmx.study.points import make_points

BUDGETS = 10.0 ** np.arange(18, 22)


def make_isoflop(shift=0.0, sizes=7):
    """Budgets whose lowest loss is at N = 0.1 C^0.5, up to a shift of the log."""
    steps = np.linspace(-1, 1, sizes) + shift
    c = np.repeat(BUDGETS, sizes)
    log_best = np.log(0.1) + 0.5 * np.log(c)
    log_n = log_best + np.tile(steps, len(BUDGETS))
    loss = 30 * c**-0.05 + 0.1 * (log_n - log_best) ** 2
    return make_points(np.exp(log_n), c / 6 / np.exp(log_n), c=c, loss=loss)


def test_an_exact_parabola_has_its_minimum():
    parabolas = fit_parabolas(make_isoflop())
    assert [x.c for x in parabolas] == pytest.approx(BUDGETS)
    for parabola in parabolas:
        assert parabola.log_n == pytest.approx(np.log(0.1 * parabola.c**0.5))
        assert parabola.loss == pytest.approx(30 * parabola.c**-0.05)
        assert not parabola.at_edge


def test_a_minimum_beyond_the_models_is_at_the_edge():
    assert all(x.at_edge for x in fit_parabolas(make_isoflop(shift=1.2)))


def test_a_budget_of_few_models_has_no_parabola():
    assert not fit_parabolas(make_isoflop(sizes=4))


def test_exact_optima_give_the_exponent_they_were_made_with():
    assert fit_isoflop(make_isoflop()) == pytest.approx((0.5, 0.5, 0.5))
    assert fit_frontier(make_isoflop()) == pytest.approx((0.5, 0.5, 0.5))


def test_the_frontier_has_the_runs_that_no_cheaper_one_beats():
    c = np.array([1.0, 2.0, 3.0, 3.0, 4.0])
    loss = np.array([5.0, 6.0, 4.0, 4.5, 3.0])
    frontier = find_frontier(make_points(np.ones(5), np.ones(5), c=c, loss=loss))
    assert frontier.c.tolist() == [1, 3, 4]
    assert frontier.loss.tolist() == [5, 4, 3]


def test_the_interval_of_a_slope_is_that_of_a_textbook():
    # Table of t for 3 degrees of freedom: 3.182.
    x, y = np.arange(1.0, 6), np.array([1.1, 1.9, 3.2, 3.9, 5.1])
    found = fit_exponent(np.exp(x), np.exp(y))
    slope = ((x - 3) * (y - y.mean())).sum() / 10
    rest = y - y.mean() - slope * (x - 3)
    half = 3.182 * np.sqrt((rest @ rest) / 3 / 10)
    assert found == pytest.approx((slope, slope - half, slope + half), rel=1e-4)
    assert fit_exponent([1.0, 1.0, 2.0], [1.0, 2.0, 3.0]) is None
