"""The sampler against NumPy, token by token, and against transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.infer.sample import (
    Sampler,
    min_p,
    penalize_repetition,
    top_k,
    top_p,
    typical_p,
)

NOISE = np.random.default_rng(0)
LOGITS = NOISE.normal(size=(6, 12)).astype(np.float32) * 2
UNSEEN = jnp.zeros(LOGITS.shape, bool)


def softmax(row):
    weights = np.exp(row - row.max(), dtype=np.float64)
    return weights / weights.sum()


def kept(logits):
    return np.isfinite(np.asarray(logits))


@pytest.mark.parametrize("k", [1, 3, 12])
def test_top_k_keeps_the_k_largest(k):
    wanted = [[x in sorted(row)[-k:] for x in row] for row in LOGITS]
    found = top_k(jnp.asarray(LOGITS), k)
    assert kept(found).tolist() == wanted
    np.testing.assert_array_equal(np.asarray(found)[wanted], LOGITS[wanted])


def test_equal_logits_stay_together_under_top_k():
    found = top_k(jnp.array([[1.0, 3.0, 3.0, 3.0, 0.0]]), 2)
    assert kept(found).tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_fewest_that_reach_p(p):
    wanted = []
    for row in LOGITS:
        total, chosen = 0.0, set()
        for token in sorted(range(12), key=lambda token: -row[token]):
            if total < p:
                chosen.add(token)
            total += softmax(row)[token]
        wanted.append([token in chosen for token in range(12)])
    assert kept(top_p(jnp.asarray(LOGITS), p)).tolist() == wanted


@pytest.mark.parametrize("p", [0.01, 0.3, 1.0])
def test_min_p_keeps_what_is_so_likely_beside_the_likeliest(p):
    wanted = [(softmax(row) >= p * softmax(row).max()).tolist() for row in LOGITS]
    assert kept(min_p(jnp.asarray(LOGITS), p)).tolist() == wanted


@pytest.mark.parametrize("mass", [0.01, 0.5, 0.9, 0.999])
def test_typical_keeps_those_of_nearly_the_expected_surprise(mass):
    wanted = []
    for row in LOGITS:
        probs = softmax(row)
        entropy = -sum(p * np.log(p) for p in probs)
        total, chosen = 0.0, set()
        for token in sorted(range(12), key=lambda t: abs(-np.log(probs[t]) - entropy)):
            if total < mass:
                chosen.add(token)
            total += probs[token]
        wanted.append([token in chosen for token in range(12)])
    assert kept(typical_p(jnp.asarray(LOGITS), mass)).tolist() == wanted


def test_a_penalty_makes_what_was_seen_less_likely_and_nothing_else():
    seen = NOISE.random(LOGITS.shape) < 0.5
    found = np.asarray(penalize_repetition(jnp.asarray(LOGITS), jnp.asarray(seen), 1.5))
    np.testing.assert_array_equal(found[~seen], LOGITS[~seen])
    wanted = [x / 1.5 if x > 0 else x * 1.5 for x in LOGITS[seen]]
    np.testing.assert_allclose(found[seen], wanted, 1e-6)


def test_every_rule_and_their_order_is_that_of_transformers(rules):
    """Rules alone and together; in half of the rows some logits are equal.

    Which of equal ones top-p keeps is up to the order of an unstable sort there.
    """
    logits, tokens = rules.pop("logits"), rules.pop("tokens")
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, tokens, True, axis=1)
    plain = dict(temperature=1.0)
    assert len(rules) == 13
    for name, wanted in rules.items():
        sampler = Sampler(**(plain | json.loads(name)))
        found = sampler.filter_logits(jnp.asarray(logits), jnp.asarray(seen))
        if "top_p" in name:
            found, wanted = np.sort(found, axis=1), np.sort(wanted, axis=1)
        np.testing.assert_allclose(found, wanted, 1e-6, err_msg=name)


def test_rules_that_rule_nothing_out_change_nothing():
    loose = Sampler(temperature=1.0, top_k=12, min_p=1e-9, repetition_penalty=1.0)
    found = loose.filter_logits(jnp.asarray(LOGITS), ~UNSEEN)
    np.testing.assert_array_equal(found, LOGITS)


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(top_k=1),
        Sampler(top_p=1e-6),
        Sampler(min_p=1.0),
        Sampler(top_k=3, top_p=0.5, min_p=0.5, typical_p=1e-6),
    ],
)
def test_something_is_always_left(sampler):
    assert kept(sampler.filter_logits(jnp.asarray(LOGITS), UNSEEN)).any(axis=1).all()


def drawn(sampler, logits, draws):
    """How often each token came, for one row of logits."""
    keys = jax.random.split(jax.random.key(0), draws)
    many = jnp.broadcast_to(jnp.asarray(logits), (draws, len(logits)))
    return np.bincount(
        jax.jit(sampler)(many, jnp.zeros(many.shape, bool), keys), minlength=len(logits)
    )


@pytest.mark.parametrize(
    ("sampler", "power", "few"),
    [
        (Sampler(temperature=1.0), 1.0, 12),
        (Sampler(temperature=0.5), 2.0, 12),
        (Sampler(temperature=2.0, top_k=4), 0.5, 4),
    ],
)
def test_tokens_come_as_often_as_the_model_believes(sampler, power, few):
    row, draws = LOGITS[0], 20_000
    chosen = np.argsort(row)[-few:]
    belief = np.zeros(12)
    belief[chosen] = softmax(row[chosen] * power)
    counts = drawn(sampler, row, draws)
    assert counts[belief == 0].sum() == 0
    expected = draws * belief[chosen]
    chi_squared = ((counts[chosen] - expected) ** 2 / expected).sum()
    assert chi_squared < 31.3  # 11 degrees of freedom, one in a thousand


def test_without_temperature_the_likeliest_comes():
    keys = jax.random.split(jax.random.key(0), 6)
    found = Sampler(temperature=0.0, top_k=2, top_p=0.1)(
        jnp.asarray(LOGITS), UNSEEN, keys
    )
    assert found.tolist() == LOGITS.argmax(axis=1).tolist()


def test_a_row_draws_by_its_own_key_alone():
    keys, sampler = jax.random.split(jax.random.key(3), 6), Sampler(temperature=3.0)
    whole = sampler(jnp.asarray(LOGITS), UNSEEN, keys)
    for row in range(6):
        alone = sampler(
            jnp.asarray(LOGITS[row : row + 1]), UNSEEN[:1], keys[row : row + 1]
        )
        assert alone[0] == whole[row]


def test_more_choices_than_tokens_are_all_of_them():
    counts = drawn(Sampler(temperature=1.0, top_k=99), LOGITS[0], 200)
    assert counts.sum() == 200


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0: it must be 0 or more"),
        ({"top_k": 0}, "top_k is 0: it must be 1 or more"),
        ({"top_p": 0.0}, "top_p is 0.0: above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5: above 0 and at most 1"),
        ({"min_p": -0.1}, "Sampler.min_p is -0.1: from 0 to 1"),
        ({"typical_p": 0.0}, "Sampler.typical_p is 0.0: above 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0: it must be above 0"),
    ],
)
def test_what_nothing_can_be_drawn_with_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**wrong)
