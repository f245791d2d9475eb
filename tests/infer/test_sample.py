"""The sampler against NumPy, token by token, and against transformers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lmx
from lmx.config.registry import ConfigError
from lmx.infer.sample import (
    Sampler,
    min_p,
    penalize_repetition,
    top_k,
    top_p,
    typical_p,
)

TINY = Path(__file__).parents[1] / "train" / "tiny.gin"
NOISE = np.random.default_rng(0)
LOGITS = NOISE.normal(size=(6, 12)).astype(np.float32) * 2
UNSEEN = jnp.zeros(LOGITS.shape, bool)


def softmax(row):
    weights = np.exp(row - row.max(), dtype=np.float64)
    return weights / weights.sum()


def is_kept(logits):
    return np.isfinite(np.asarray(logits))


@pytest.mark.parametrize("k", [1, 3, 12])
def test_top_k_keeps_the_k_largest(k):
    expected = [[x in sorted(row)[-k:] for x in row] for row in LOGITS]
    found = top_k(jnp.asarray(LOGITS), k)
    assert is_kept(found).tolist() == expected
    np.testing.assert_array_equal(np.asarray(found)[expected], LOGITS[expected])


def test_top_k_keeps_equal_logits_together():
    found = top_k(jnp.array([[1.0, 3.0, 3.0, 3.0, 0.0]]), 2)
    assert is_kept(found).tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_fewest_that_reach_p(p):
    expected = []
    for row in LOGITS:
        total, chosen = 0.0, set()
        for token in sorted(range(12), key=lambda token: -row[token]):
            if total < p:
                chosen.add(token)
            total += softmax(row)[token]
        expected.append([token in chosen for token in range(12)])
    assert is_kept(top_p(jnp.asarray(LOGITS), p)).tolist() == expected


@pytest.mark.parametrize("p", [0.01, 0.3, 1.0])
def test_min_p_keeps_tokens_relative_to_the_most_likely(p):
    expected = [(softmax(row) >= p * softmax(row).max()).tolist() for row in LOGITS]
    assert is_kept(min_p(jnp.asarray(LOGITS), p)).tolist() == expected


@pytest.mark.parametrize("mass", [0.01, 0.5, 0.9, 0.999])
def test_typical_p_keeps_tokens_with_surprise_near_the_entropy(mass):
    expected = []
    for row in LOGITS:
        probs = softmax(row)
        entropy = -sum(p * np.log(p) for p in probs)
        total, chosen = 0.0, set()
        for token in sorted(range(12), key=lambda t: abs(-np.log(probs[t]) - entropy)):
            if total < mass:
                chosen.add(token)
            total += probs[token]
        expected.append([token in chosen for token in range(12)])
    assert is_kept(typical_p(jnp.asarray(LOGITS), mass)).tolist() == expected


def test_a_repetition_penalty_changes_seen_tokens_only():
    seen = NOISE.random(LOGITS.shape) < 0.5
    found = np.asarray(penalize_repetition(jnp.asarray(LOGITS), jnp.asarray(seen), 1.5))
    np.testing.assert_array_equal(found[~seen], LOGITS[~seen])
    expected = [x / 1.5 if x > 0 else x * 1.5 for x in LOGITS[seen]]
    np.testing.assert_allclose(found[seen], expected, 1e-6)


def test_rules_and_their_order_are_those_of_transformers(rules):
    """Rules alone and combined; half of the rows have equal logits.

    Which of the equal ones top-p keeps depends on an unstable sort in transformers.
    """
    logits, tokens = rules.pop("logits"), rules.pop("tokens")
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, tokens, True, axis=1)
    plain = dict(temperature=1.0)
    assert len(rules) == 13
    for name, expected in rules.items():
        sampler = Sampler(**(plain | json.loads(name)))
        found = sampler.filter_logits(jnp.asarray(logits), jnp.asarray(seen))
        if "top_p" in name:
            found, expected = np.sort(found, axis=1), np.sort(expected, axis=1)
        np.testing.assert_allclose(found, expected, 1e-6, err_msg=name)


def test_rules_that_exclude_nothing_change_nothing():
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
def test_at_least_one_token_is_kept(sampler):
    assert is_kept(sampler.filter_logits(jnp.asarray(LOGITS), UNSEEN)).any(axis=1).all()


def count_samples(sampler, logits, draws):
    """Counts of each token in samples from one row of logits."""
    keys = jax.random.split(jax.random.key(0), draws)
    many = jnp.broadcast_to(jnp.asarray(logits), (draws, len(logits)))
    return np.bincount(
        jax.jit(sampler)(many, jnp.zeros(many.shape, bool), keys), minlength=len(logits)
    )


@pytest.mark.parametrize(
    ("sampler", "power", "kept"),
    [
        (Sampler(temperature=1.0), 1.0, 12),
        (Sampler(temperature=0.5), 2.0, 12),
        (Sampler(temperature=2.0, top_k=4), 0.5, 4),
    ],
)
def test_tokens_are_sampled_with_the_probabilities_of_the_model(sampler, power, kept):
    row, draws = LOGITS[0], 20_000
    chosen = np.argsort(row)[-kept:]
    probs = np.zeros(12)
    probs[chosen] = softmax(row[chosen] * power)
    counts = count_samples(sampler, row, draws)
    assert counts[probs == 0].sum() == 0
    expected = draws * probs[chosen]
    chi_squared = ((counts[chosen] - expected) ** 2 / expected).sum()
    assert chi_squared < 31.3  # 11 degrees of freedom, one in a thousand


def test_temperature_zero_takes_the_most_likely_token():
    keys = jax.random.split(jax.random.key(0), 6)
    found = Sampler(temperature=0.0, top_k=2, top_p=0.1)(
        jnp.asarray(LOGITS), UNSEEN, keys
    )
    assert found.tolist() == LOGITS.argmax(axis=1).tolist()


def test_the_lowest_values_take_the_most_likely_of_the_largest_logits():
    """Their quotients do not overflow."""
    logits, keys = jnp.asarray(LOGITS) * 1e3, jax.random.split(jax.random.key(3), 6)
    sampler = Sampler(temperature=1e-6, repetition_penalty=1e-6)
    found = sampler(logits, ~UNSEEN, keys)
    assert found.tolist() == LOGITS.argmax(axis=1).tolist()


def test_the_sample_of_a_row_depends_on_its_own_key_alone():
    keys, sampler = jax.random.split(jax.random.key(3), 6), Sampler(temperature=3.0)
    together = sampler(jnp.asarray(LOGITS), UNSEEN, keys)
    for row in range(6):
        alone = sampler(
            jnp.asarray(LOGITS[row : row + 1]), UNSEEN[:1], keys[row : row + 1]
        )
        assert alone[0] == together[row]


def test_top_k_above_the_vocabulary_keeps_all_tokens():
    counts = count_samples(Sampler(temperature=1.0, top_k=99), LOGITS[0], 200)
    assert counts.sum() == 200


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0: it must be 0, or 1e-6 or more"),
        ({"temperature": 1e-38}, "temperature is 1e-38: it must be 0, or 1e-6"),
        ({"top_k": 0}, "top_k is 0: it must be above 0"),
        ({"top_p": 0.0}, "top_p is 0.0: it must be above 0, and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5: it must be above 0, and at most 1"),
        ({"min_p": -0.1}, "min_p is -0.1: it must be from 0 to 1"),
        (
            {"typical_p": 0.0},
            "typical_p is 0.0: it must be above 0",
        ),
        (
            {"repetition_penalty": 0.0},
            "repetition_penalty is 0.0: it must be from",
        ),
        (
            {"repetition_penalty": 1e-38},
            "repetition_penalty is 1e-38: it must",
        ),
    ],
)
def test_invalid_values_are_refused(wrong, message):
    """In Python, and in a config before anything is built."""
    with pytest.raises(ConfigError, match=message):
        Sampler(**wrong)
    hook = ["Experiment.hooks=[@Sample()]", "Sample.sampler=@Sampler()"]
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f"Sampler.{name}=.*: Sampler.{message}"):
        lmx.load_experiment(TINY, [*hook, f"Sampler.{name}={value}"])
