"""Each doubt about a fit is raised where there is cause, and else not."""

from dataclasses import replace

import numpy as np
import pytest

from lmx.study.check import (
    backtest,
    compare,
    find_outliers,
    list_warnings,
    suggest_runs,
)
from lmx.study.fit import Estimate, differentiate, fit_law
from lmx.study.law import Chinchilla
from lmx.study.points import Points, make_points
from tests.study.test_law import PUBLISHED

TRUTH = PUBLISHED["chinchilla"]
DECIDED = Estimate(1.69, 1.6, 1.75)


def make_ladder(budgets=5, models=8, noise=0.003, seed=0):
    """Budgets of models around the compute-optimal one."""
    c = np.repeat(np.geomspace(1e18, 1e21, budgets), models)
    steps = np.tile(np.linspace(-1.2, 1.2, models), budgets)
    law = Chinchilla(0.0, 0.0, 0.0)
    params = law.parse(TRUTH)
    n = np.array([float(law.log_optimal_n(params, x)) for x in np.log(c / 6)])
    points = make_points(np.exp(n + steps), c / 6 / np.exp(n + steps))
    errors = noise * np.random.default_rng(seed).normal(size=len(c))
    return points.with_loss(np.exp(law.log_loss(params, points) + errors))


def fit_points(points: Points):
    return fit_law(Chinchilla.build(points), points)


@pytest.fixture(scope="module")
def fit():
    return fit_points(make_ladder())


def test_a_good_ladder_has_no_warning(fit):
    assert not list_warnings(fit, DECIDED)


def test_outliers_are_named_by_their_rows(fit):
    losses = fit.points.loss.copy()
    losses[[3, 17]] *= 1.1
    rows = np.arange(2, 42)
    spoiled = fit_points(replace(fit.points, loss=losses, rows=rows))
    assert set(find_outliers(spoiled)) == {3, 17}
    text = list_warnings(spoiled, DECIDED)[0]
    assert "2 outliers" in text and "5 (loss" in text and "19 (loss" in text


def test_few_budgets_and_optima_at_the_edge_are_named(fit):
    points = make_ladder(budgets=2, models=12)
    smaller = points.n <= np.sort(points.n[points.budgets == 0])[5]
    half = points.select(smaller | (points.budgets == 1))
    few, edge = list_warnings(replace(fit, points=half), DECIDED)
    assert "2 compute budgets" in few
    assert "at the budgets 1e+18 the lowest loss is at the edge" in edge


def test_a_ladder_with_one_ratio_of_tokens_to_parameters_is_named(fit):
    points = make_points(fit.points.n, 20 * fit.points.n)
    text = list_warnings(replace(fit, points=points), DECIDED)
    assert any("can hardly be told apart" in line for line in text)


def test_two_conventions_of_flops_are_named(fit):
    c = fit.points.c * np.where(fit.points.n > 1e9, 1.0, 1.3)
    [text] = list_warnings(replace(fit, points=replace(fit.points, c=c)), DECIDED)
    assert "from 6.00 to 7.80" in text


@pytest.mark.parametrize("ends", [(-np.inf, 1.7), (1.6, np.inf), (1.6, 2.9)])
def test_an_asymptote_that_the_data_do_not_decide_is_named(fit, ends):
    [text] = list_warnings(fit, Estimate(1.69, *ends))
    assert "do not decide the asymptote" in text


def test_a_start_that_ends_too_high_is_named(fit):
    worse = (fit.objective * 1.1, *fit.objectives[1:])
    [text] = list_warnings(replace(fit, objectives=worse), DECIDED)
    assert "several minima" in text


def test_parameters_of_elsewhere_are_within_or_outside_and_may_have_stopped_early(fit):
    published = {k: v for k, v in fit.law.report(fit.params).items() if k != "a"}
    same = compare(fit, published)
    assert not same.is_excluded and not same.stopped_early
    assert same.objective == pytest.approx(fit.objective)
    near = compare(fit, {**published, "E": published["E"] * 1.0002})
    assert near.stopped_early and not near.is_excluded
    assert near.refined == pytest.approx(fit.objective)
    far = compare(fit, {**published, "alpha": 0.3})
    assert far.is_excluded


def test_a_backtest_holds_out_the_largest_and_predicts_them(fit):
    for field, name in (("c", "budgets"), ("n", "models")):
        test = backtest(fit, field)
        assert test is not None and test.held_out == name
        assert test.points == {"c": 8, "n": 5}[field]
        assert test.error < 0.03
        assert test.covered >= 0.75


def test_a_backtest_of_too_few_points_is_none():
    assert backtest(fit_points(make_ladder(budgets=2, models=4)), "c") is None


def test_suggested_runs_narrow_the_interval_as_a_fit_with_them_does(fit):
    def quantity(params):
        return params[..., 3]

    def find_variance(points):
        again = replace(fit, points=points)
        jacobian = again.jacobian(points)
        gradient = differentiate(quantity, fit.params, fit.free)
        return gradient @ np.linalg.inv(jacobian.T @ jacobian) @ gradient

    gradient = differentiate(quantity, fit.params, fit.free)
    runs = suggest_runs(fit, gradient, float(fit.points.c.max()))
    assert len(runs) == 3
    before = find_variance(fit.points)
    added = make_points(
        np.append(fit.points.n, [x.n for x in runs]),
        np.append(fit.points.d, [x.d for x in runs]),
    )
    narrowed = np.sqrt(find_variance(added) / before)
    assert runs[-1].factor == pytest.approx(narrowed, rel=1e-6)
    assert narrowed < 0.95
    assert all(6 * x.n * x.d <= fit.points.c.max() * 1.001 for x in runs)
