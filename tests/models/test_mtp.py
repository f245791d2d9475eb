"""Multi-token prediction: causality, packing, loss and FLOPs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.core.batch import Batch
from lmx.core.precision import Precision
from lmx.models import params
from lmx.models.mtp import MultiTokenPrediction, mtp_hidden_states
from lmx.train.loss import MultiToken, NextToken, sum_cross_entropy

pytestmark = pytest.mark.usefixtures("exact")

V, T, MODULES = 11, 8, 2
DOUBLE = Precision(params="float64", compute="float64")
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, V, (2, T)), "int32")
SEGMENTS = jnp.asarray([[1] * 8, [1, 1, 1, 1, 2, 2, 2, 2]], "int32")


@jax.jit
def run_mtp(model, tokens, segments):
    """Logits of the next token, of later tokens, and auxiliary means."""
    streams, aux = mtp_hidden_states(model, tokens, None, segments, None)
    first, *further = map(model.logits, streams)
    return first, further, aux


@pytest.fixture(scope="module")
def model(make, exact):
    ahead = partial(MultiTokenPrediction, modules=MODULES)
    return make("sandwich learned moe conv", mtp=ahead, precision=DOUBLE)


def batch_of(tokens, segments):
    """Next-token targets; the last token of a document has weight zero."""
    targets = np.roll(tokens, -1, axis=1)
    inside = np.roll(segments, -1, axis=1) == segments
    inside[:, -1] = False
    positions = np.zeros_like(tokens)
    for b, t in np.ndindex(tokens.shape):
        begins = t == 0 or segments[b, t] != segments[b, t - 1]
        positions[b, t] = 0 if begins else positions[b, t - 1] + 1
    return Batch(tokens, targets, inside.astype(np.float64), positions, segments)


def test_module_k_reads_up_to_k_tokens_ahead_and_no_further(model):
    ones = jnp.ones_like(SEGMENTS)
    before = run_mtp(model, TOKENS, ones)[1]
    after = run_mtp(model, TOKENS.at[:, 5].set((TOKENS[:, 5] + 1) % V), ones)[1]
    for number, (one, other) in enumerate(zip(before, after, strict=True), 1):
        change = jnp.abs(one - other).max(axis=(0, 2))
        assert (change[: 5 - number] < 1e-12).all()
        assert change[5 - number] > 1e-4


def test_mtp_of_a_packed_document_equals_the_document_alone(model):
    packed = run_mtp(model, TOKENS, SEGMENTS)[1]
    alone = run_mtp(model, jnp.roll(TOKENS, -4, axis=1), SEGMENTS)[1]
    for number, (one, other) in enumerate(zip(packed, alone, strict=True), 1):
        last = 8 - number  # later targets belong to another document
        np.testing.assert_allclose(one[1, 4:last], other[1, : last - 4], atol=1e-12)


def test_the_logits_of_the_next_token_are_those_of_forward(model):
    logits, _, aux = run_mtp(model, TOKENS, SEGMENTS)
    want, layers = model.forward(TOKENS, None, SEGMENTS)
    np.testing.assert_allclose(logits, want, atol=1e-12)
    for name, mean in layers.items():
        assert aux[name].total.shape == (3 + MODULES,)
        np.testing.assert_allclose(aux[name].total[:3], mean.total, rtol=1e-12)


@jax.jit
def losses(model, batch):
    weights = {"balance": 0.0, "router_z": 0.0}
    both = (
        MultiToken(aux=weights, mtp_weight=0.3),
        MultiToken(aux=weights, mtp_weight=0.0),
    )
    return [loss(model, batch) for loss in both], NextToken(aux=weights)(model, batch)


def test_the_loss_equals_a_loop_over_targets(model):
    batch = batch_of(np.asarray(TOKENS), np.asarray(SEGMENTS))
    (with_further, without), next_token = losses(model, batch)
    assert float(without[0].total) == pytest.approx(float(next_token[0].total))
    further = run_mtp(model, TOKENS, SEGMENTS)[1]
    total = 0.0
    for number, logits in enumerate(further, 1):
        log_probs = np.asarray(jax.nn.log_softmax(logits))
        for b, t in np.ndindex(2, T):
            at = t + number + 1
            if at < T and SEGMENTS[b, at] == SEGMENTS[b, t]:
                total -= log_probs[b, t, TOKENS[b, at]]
    want = float(next_token[0].total) + 0.3 * total / MODULES
    assert float(with_further[0].total) == pytest.approx(want, rel=1e-9)
    assert set(with_further[1]) - set(next_token[1]) == {"nats_2", "nats_3"}


def test_a_module_that_copies_hidden_states_predicts_the_same_logits(make):
    """The module returns the hidden states of the decoder."""
    model = make("pre waves dense", mtp=MultiTokenPrediction, precision=DOUBLE)
    [module] = model.mtp.modules
    module.projection.w.set_value(jnp.concatenate([jnp.eye(16), jnp.zeros((16, 16))]))
    for part in (module.block.attention.out, module.block.mlp.down):
        part.w.set_value(jnp.zeros_like(part.w[...]))
    batch = batch_of(np.asarray(TOKENS), np.ones_like(TOKENS))
    logits, [further], _ = run_mtp(model, TOKENS, jnp.ones_like(TOKENS))
    np.testing.assert_allclose(further, logits, atol=1e-5)  # up to epsilon
    assert sum_cross_entropy(further, batch)[0].weight == 2 * (T - 1)


def test_flops_of_an_mtp_module_are_a_layer_a_projection_and_a_head(make):
    def shaped(**options):
        return nnx.eval_shape(lambda: make("pre waves dense", **options))

    plain = params.train_flops_per_token(shaped(), T)
    layer = params.train_flops_per_token(shaped(depth=4), T) - plain
    extra = params.train_flops_per_token(shaped(mtp=MultiTokenPrediction), T) - plain
    assert extra == layer + 6 * (2 * 16 * 16 + 16 * V)
