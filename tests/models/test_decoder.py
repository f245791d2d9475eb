"""Contract of decoders, for all kinds of layers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.precision import Precision

pytestmark = pytest.mark.usefixtures("exact")

B, T, V, DEPTH = 2, 8, 11, 3
DOUBLE = Precision(params="float64", compute="float64")
ONE = jnp.ones((B, T), "int32")


@pytest.fixture(scope="module")
def model(make, variant, exact):
    return make(variant, precision=DOUBLE)


@pytest.fixture(scope="module")
def forward(model):
    """Logits and auxiliary means; compiled once for all tests of a model."""
    chex.clear_trace_counter()  # of the previous model
    call = jax.jit(
        chex.assert_max_traces(lambda model, *inputs: model.forward(*inputs), n=1)
    )

    def forward(tokens, segments=ONE, positions=None):
        positions = positions_of(segments) if positions is None else positions
        return call(model, tokens, positions, segments)

    return forward


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(1).integers(0, V, (B, T)), "int32")


def positions_of(segments):
    rows = np.zeros(segments.shape, np.int32)
    for b, t in np.ndindex(segments.shape):
        new = t == 0 or segments[b, t] != segments[b, t - 1]
        rows[b, t] = 0 if new else rows[b, t - 1] + 1
    return jnp.asarray(rows)


def segments_of(*lengths, first=1):
    row = np.repeat(np.arange(first, first + len(lengths)), lengths)
    return jnp.asarray(np.tile(row, (B, 1)), "int32")


def test_the_future_does_not_reach_the_past(forward, tokens):
    changed = tokens.at[:, 5:].set((tokens[:, 5:] + 1) % V)
    before, after = forward(tokens)[0], forward(changed)[0]
    np.testing.assert_allclose(before[:, :5], after[:, :5], atol=1e-12)
    assert (jnp.abs(before - after)[:, 5:].max(axis=(0, 2)) > 1e-3).all()


def test_the_past_reaches_the_future(forward, tokens):
    """Within the reach of three windows of three tokens."""
    changed = tokens.at[:, 1].set((tokens[:, 1] + 1) % V)
    change = jnp.abs(forward(tokens)[0] - forward(changed)[0])
    assert (change.max(axis=(0, 2))[1:] > 1e-6).all()


def test_rows_do_not_mix(forward, tokens):
    changed = forward(tokens.at[1].set(0))[0]
    np.testing.assert_allclose(changed[0], forward(tokens)[0][0], atol=1e-12)


def test_documents_of_a_row_do_not_mix(forward, tokens):
    segments = segments_of(4, 4)
    packed = forward(tokens, segments)[0]
    swapped = forward(jnp.roll(tokens, 4, axis=1), segments)[0]
    np.testing.assert_allclose(packed, jnp.roll(swapped, 4, axis=1), atol=1e-12)


def test_a_packed_document_equals_the_document_alone(forward, tokens):
    packed = forward(tokens, segments_of(3, 5))[0]
    moved = forward(jnp.roll(tokens, -3, axis=1), segments_of(5, 3))[0]
    np.testing.assert_allclose(packed[:, 3:], moved[:, :5], atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_affect_other_tokens(forward, tokens, side):
    segments = segments_of(3, 5, first=0) if side == "left" else segments_of(5, 3) % 2
    unpadded = segments[0] > 0
    noise = jnp.where(unpadded[None], tokens, (tokens + 1) % V)
    (padded, aux), (other, other_aux) = (
        forward(x, segments, jnp.where(unpadded[None], positions_of(segments), 0))
        for x in (tokens, noise)
    )
    np.testing.assert_allclose(padded[:, unpadded], other[:, unpadded], atol=1e-12)
    for name, mean in aux.items():
        np.testing.assert_allclose(mean.total, other_aux[name].total, rtol=1e-12)
        assert (mean.weight == B * 5).all()


def test_every_layer_reports_its_auxiliary_means(forward, tokens, variant):
    _, aux = forward(tokens)
    assert set(aux) == ({"balance", "router_z"} if "moe" in variant else set())
    for mean in aux.values():
        layers = DEPTH - ("lead" in variant)
        assert mean.total.shape == mean.weight.shape == (layers,)
        assert (mean.weight == B * T).all()


def test_a_float64_model_is_float64_throughout(model, forward, tokens):
    outputs = forward(tokens)
    for leaf in jax.tree.leaves((model, outputs)):
        assert leaf.dtype == jnp.float64
    jaxpr = jax.make_jaxpr(lambda: model(tokens))()
    assert "f32[" not in str(jaxpr) and "bf16[" not in str(jaxpr)


def test_the_second_call_does_not_recompile(forward, tokens):
    for shift in range(2):
        forward((tokens + shift) % V, segments_of(3 + shift, 5 - shift))
