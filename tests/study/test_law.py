"""Scaling laws against published formulas, and fits of points without noise."""

import math

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.study.fit import fit_law
from lmx.study.law import LAWS, Chinchilla
from lmx.study.points import Points, make_points

PUBLISHED = {  # of the papers that the classes name
    "chinchilla": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    "kaplan": {"Nc": 8.8e13, "Dc": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095},
    "compute": {"E": 1.7, "A": 50.0, "gamma": 0.1},
    "repeated": {
        **{"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "beta": 0.353},
        **{"R_D": 15.39, "R_N": 5.31},
    },
    "routed": {
        **{"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104},
        **{"E_start": 1.847, "E_max": 314.478},
    },
}


def reference_loss(name, n, d, unique, experts, p):
    """The loss of one run, in plain floats."""
    if name == "chinchilla":
        return p["E"] + p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"]
    if name == "kaplan":
        term = (p["Nc"] / n) ** (p["alpha_N"] / p["alpha_D"])
        return (term + p["Dc"] / d) ** p["alpha_D"]
    if name == "compute":
        return p["E"] + p["A"] / (6 * n * d) ** p["gamma"]
    if name == "repeated":
        g = p["alpha"] * p["A"] / (p["beta"] * p["B"])
        best = min(n, (g * unique ** p["beta"]) ** (1 / p["alpha"]))
        n = best * (1 + p["R_N"] * (1 - math.exp(-(n / best - 1) / p["R_N"])))
        d = unique * (1 + p["R_D"] * (1 - math.exp(-(d / unique - 1) / p["R_D"])))
        return reference_loss("chinchilla", n, d, d, 1, p)
    first = 1 / (1 / p["E_start"] - 1 / p["E_max"])
    x = math.log10(1 / (1 / (experts - 1 + first) + 1 / p["E_max"]))
    n = math.log10(n)
    return 10 ** (p["a"] * n + p["b"] * x + p["c"] * n * x + p["d"])


def draw_points(name, size=80, seed=0) -> Points:
    rng = np.random.default_rng(seed)
    n, d = 10 ** rng.uniform(7, 10, size), 10 ** rng.uniform(9, 11.5, size)
    known = {
        "unique": d / rng.choice([1, 2, 5, 10, 40, 100], size),
        "experts": rng.choice([1.0, 2.0, 4.0, 8.0, 32.0, 128.0, 512.0], size),
    }
    points = make_points(n, d, **known)
    rows = zip(n, d, points.unique, points.experts, strict=True)
    losses = [reference_loss(name, *row, PUBLISHED[name]) for row in rows]
    return points.with_loss(np.array(losses))


@pytest.mark.parametrize("name", LAWS)
def test_a_law_has_the_loss_of_the_published_formula(name):
    points = draw_points(name)
    law = LAWS[name].build(points)
    loss = np.exp(law.log_loss(law.parse(PUBLISHED[name]), points))
    np.testing.assert_allclose(loss, points.loss, rtol=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_points_without_noise_give_the_parameters_they_were_made_with(name):
    points = draw_points(name)
    law = LAWS[name].build(points)
    found = law.report(fit_law(law, points).params)
    for parameter, value in PUBLISHED[name].items():
        assert found[parameter] == pytest.approx(value, rel=1e-6), parameter


def test_exponents_of_random_surfaces_are_recovered_from_five_budgets():
    rng = np.random.default_rng(1)
    for _ in range(12):
        alpha, beta = rng.uniform(0.2, 0.7, 2)
        truth = {"E": rng.uniform(0.5, 2.5), "alpha": alpha, "beta": beta}
        truth |= {"A": 10 ** (8 * alpha), "B": 10 ** (10 * beta)}
        n = np.tile(10 ** rng.uniform(7, 9, 8), 5)
        c = np.repeat(10 ** np.linspace(18, 20, 5), 8)
        points = make_points(n, c / 6 / n)
        law = Chinchilla.build(points)
        points = points.with_loss(np.exp(law.log_loss(law.parse(truth), points)))
        found = law.report(fit_law(law, points).params)
        assert abs(found["alpha"] - alpha) < 1e-6
        assert abs(found["beta"] - beta) < 1e-6


@pytest.mark.parametrize("name", ["chinchilla", "kaplan"])
def test_the_optimum_is_the_lowest_of_many_sizes_at_its_budget(name):
    points = draw_points(name)
    law = LAWS[name].build(points)
    params = law.parse(PUBLISHED[name])
    log_nd = math.log(1e20)
    sizes = np.exp(np.linspace(15, 30, 150_001))
    losses = law.log_loss(params, make_points(sizes, 1e20 / sizes))
    best = math.log(sizes[np.argmin(losses)])
    assert law.log_optimal_n(params, log_nd) == pytest.approx(best, abs=1e-3)


def test_what_does_not_vary_or_is_too_little_is_refused():
    points = draw_points("chinchilla")
    with pytest.raises(ConfigError, match="several values of N, and all rows have 1"):
        Chinchilla.build(make_points(np.full(80, 1e9), points.d))
    with pytest.raises(ConfigError, match="5 parameters, and 5 points cannot"):
        Chinchilla.build(points.select(np.arange(5)))
    law = Chinchilla.build(points)
    with pytest.raises(ConfigError, match="alpha, beta: A is missing"):
        law.parse({"E": 1.0, "B": 1.0, "alpha": 1.0, "beta": 1.0})
    with pytest.raises(ConfigError, match="fewer unique tokens than tokens"):
        LAWS["repeated"].build(make_points(points.n, points.d))
