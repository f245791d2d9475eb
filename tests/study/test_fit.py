"""Intervals of fits against exact ones, and the bootstrap."""

import math

import numpy as np
import pytest
from scipy import stats

from lmx.config.registry import ConfigError
from lmx.study import fit as fits
from lmx.study.fit import bootstrap, estimate, fit_law, profile, refine, sum_huber
from lmx.study.law import Chinchilla, Routed
from tests.study.test_law import draw_points

NOISE = 0.005  # of log losses


@pytest.fixture(scope="module")
def noisy():
    """A fit of 80 points with noise."""
    points = draw_points("chinchilla")
    noise = np.random.default_rng(0).normal(size=80)
    points = points.with_loss(points.loss * np.exp(NOISE * noise))
    return fit_law(Chinchilla.build(points), points)


def test_the_objective_is_the_sum_of_huber_losses():
    total = sum(x * x / 2 if x <= 0.1 else 0.1 * (x - 0.05) for x in (0.02, 0.1, 0.5))
    assert sum_huber(np.array([0.02, -0.1, 0.5]), 0.1) == pytest.approx(total)


def test_no_parameters_nearby_are_better(noisy):
    rng = np.random.default_rng(3)
    observed = np.log(noisy.points.loss)
    for size in (1e-5, 1e-3, 1e-2):
        for _ in range(100):
            params = noisy.params + size * rng.normal(size=5)
            errors = noisy.law.log_loss(params, noisy.points) - observed
            assert sum_huber(errors, noisy.delta) >= noisy.objective


def test_the_deviation_of_residuals_is_that_of_the_noise(noisy):
    assert noisy.deviation == pytest.approx(NOISE, rel=0.25)


def test_the_interval_of_an_exponent_ends_where_fits_with_it_pinned_are_rejected(noisy):
    _, low, high = profile(noisy, lambda p: p[..., 3])
    limit = stats.t.ppf(0.975, 80 - 5) ** 2
    for end in (low, high):
        pinned = fit_law(noisy.law, noisy.points, pinned={"alpha": end})
        ratio = 2 * (pinned.objective - noisy.objective) / noisy.scale
        assert ratio == pytest.approx(limit, rel=0.03)


def test_an_interval_ends_at_zero_where_bootstrap_fits_have_a_coefficient_of_zero(
    noisy,
):
    samples = np.tile(noisy.params, (100, 1))
    samples[:3, 0] = -1e4  # the log of E
    found = estimate(noisy, samples, lambda p: np.log(noisy.law.report(p)["E"]))
    value = float(noisy.law.report(noisy.params)["E"])
    assert np.exp(found) == pytest.approx([value, 0.0, value])


def test_intervals_of_a_linear_law_are_those_of_least_squares():
    points = draw_points("routed")
    noise = NOISE * np.random.default_rng(1).normal(size=80)
    points = points.with_loss(points.loss * np.exp(noise))
    shape = {"E_start": 1.847, "E_max": 314.478}
    fit = fit_law(Routed.build(points), points, 1e3, shape)
    terms = np.stack(fit.law.log_terms((), [*shape.values()], points), -1)
    factors, squares, *_ = np.linalg.lstsq(terms, np.log10(points.loss))
    np.testing.assert_allclose(fit.params[:4], factors, rtol=1e-6)
    errors = np.sqrt(np.diag(np.linalg.inv(terms.T @ terms)) * squares / (80 - 4))
    for index, error in enumerate(errors):
        value, low, high = profile(fit, lambda p, i=index: p[..., i])
        half = stats.t.ppf(0.975, 80 - 4) * error
        assert value - low == pytest.approx(half, rel=0.02)
        assert high - value == pytest.approx(half, rel=0.02)


def test_a_pinned_parameter_is_not_fitted(noisy):
    fit = fit_law(noisy.law, noisy.points, pinned={"E": 1.5, "beta": 0.3})
    assert fit.law.report(fit.params)["E"] == pytest.approx(1.5)
    assert fit.params[4] == 0.3
    assert fit.objective > noisy.objective
    with pytest.raises(ConfigError, match="A cannot be pinned: one of E, alpha, beta"):
        fit_law(noisy.law, noisy.points, pinned={"A": 1.0})


def test_draws_depend_on_the_seed_alone(noisy, monkeypatch):
    first = bootstrap(noisy, 6, seed=1)
    np.testing.assert_array_equal(first, bootstrap(noisy, 6, seed=1))
    assert not np.array_equal(first, bootstrap(noisy, 6, seed=2))
    monkeypatch.setattr(fits, "PARALLEL", 3)
    monkeypatch.setattr(fits.os, "cpu_count", lambda: 2)
    np.testing.assert_array_equal(first, bootstrap(noisy, 6, seed=1))


def test_a_draw_is_the_fit_of_points_with_replacement(noisy):
    seed = np.random.SeedSequence(4).spawn(1)[0]
    drawn = np.random.default_rng(seed).integers(0, 80, 80)
    again = noisy.points.select(drawn)
    exact = refine(fit_law(noisy.law, again))
    np.testing.assert_allclose(bootstrap(noisy, 1, 4)[0], exact.params, rtol=0.02)


def test_both_intervals_agree_about_their_width(noisy):
    samples = bootstrap(noisy, 99)
    for index in (0, 3, 4):
        _, low, high = profile(noisy, lambda p, i=index: p[..., i])
        _, least, most = estimate(noisy, samples, lambda p, i=index: p[..., i])
        assert math.log((most - least) / (high - low)) == pytest.approx(0, abs=0.5)
