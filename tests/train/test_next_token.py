"""The loss against plain loops over tokens."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.core.batch import Batch
from lmx.core.mean import Mean
from lmx.train.loss import NextToken

B, T, V = 2, 3, 5
NOISE = np.random.default_rng(0)
LOGITS = NOISE.normal(size=(B, T, V)).astype(np.float32) * 3
WEIGHTS = np.array([[1, 0.5, 0], [0.25, 1, 1]], np.float32)
TARGETS = NOISE.integers(0, V, (B, T)).astype(np.int32)
ZEROS = np.zeros((B, T), np.int32)
BATCH = Batch(ZEROS, TARGETS, WEIGHTS, ZEROS, ZEROS + 1)
AUX = {"balance": Mean(jnp.array([3.0, 5.0]), jnp.array([2.0, 2.0]))}  # of two layers


def returning(aux):
    """A model with fixed logits."""
    methods = dict(
        hidden_states=lambda *_: (jnp.asarray(LOGITS), aux), logits=lambda x: x
    )
    return types.SimpleNamespace(**methods)


def by_hand():
    """Nats and squared log denominators, token by token."""
    nats = squares = 0.0
    for row in range(B):
        for at in range(T):
            log_z = np.log(np.exp(LOGITS[row, at].astype(np.float64)).sum())
            nats += WEIGHTS[row, at] * (log_z - LOGITS[row, at, TARGETS[row, at]])
            squares += WEIGHTS[row, at] * log_z**2
    return nats, squares


def test_nats_are_weighted_by_token():
    loss, means = NextToken()(returning({}), BATCH)
    nats, squares = by_hand()
    assert float(loss.total) == pytest.approx(nats, rel=1e-6)
    assert float(loss.weight) == WEIGHTS.sum()
    assert float(loss.value) == pytest.approx(nats / WEIGHTS.sum(), rel=1e-6)
    assert means["nats"] == loss
    assert float(means["log_z_squared"].total) == pytest.approx(squares, rel=1e-6)


def test_z_loss_and_auxiliary_losses_are_added_by_their_weights():
    loss, means = NextToken(z_loss=0.1, aux={"balance": 0.5})(returning(AUX), BATCH)
    nats, squares = by_hand()
    wanted = nats + 0.1 * squares + 0.5 * (3.0 + 5.0) / 2
    assert float(loss.total) == pytest.approx(wanted, rel=1e-6)
    assert means["balance"] is AUX["balance"]


@pytest.mark.parametrize(
    ("weighed", "returned"), [({}, AUX), ({"balance": 1.0, "z": 1.0}, AUX)]
)
def test_exactly_the_returned_auxiliary_losses_must_be_named(weighed, returned):
    with pytest.raises(ConfigError, match=r"has \[.*the model returns \['balance'\]"):
        NextToken(aux=weighed)(returning(returned), BATCH)
