"""Decoder outputs and their dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.precision import Precision
from lmx.layers.linear import TiedLMHead

TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 11, (2, 6)), "int32")
VARIANTS = pytest.mark.parametrize(
    "variant", ["pre rope dense conv", "post learned dense", "sandwich waves moe"]
)


@jax.jit
def run(model):
    return model(TOKENS)


@jax.jit
def gradient(model):
    return jax.grad(lambda model: jax.nn.logsumexp(model(TOKENS), axis=-1).sum())(model)


@VARIANTS
def test_every_parameter_has_a_gradient(make, variant):
    for grad in jax.tree.leaves(gradient(make(variant))):
        assert jnp.isfinite(grad).all() and jnp.abs(grad).sum() > 0


def test_each_row_is_one_document_unless_segments_say_otherwise(make):
    segments = jnp.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 2, 2]])
    positions = jnp.array([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 0, 1]])

    @jax.jit
    def outputs(model):
        plain = model(TOKENS)
        options, found = (model(TOKENS, at, segments) for at in (positions, None))
        return plain, options, found

    plain, options, found = outputs(make("post learned dense"))
    np.testing.assert_allclose(found, options, atol=1e-6)
    np.testing.assert_allclose(found[0], plain[0], atol=1e-6)
    assert jnp.abs(found - plain)[1, 4:].max() > 1e-3


@pytest.mark.parametrize("variant", ["post learned dense", "sandwich waves moe"])
def test_bfloat16_computes_between_float32_parameters_and_logits(make, variant):
    model = make(variant, precision=Precision(compute="bfloat16"))
    wide = make(variant)
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("float32")}
    got, want = run(model), run(wide)
    assert got.dtype == jnp.float32
    assert 0 < jnp.abs(got - want).mean() < 0.05 * jnp.abs(want).mean()


@VARIANTS
def test_the_cache_has_the_compute_dtype(make, variant):
    model = make(variant, precision=Precision(compute="bfloat16"))
    layers = jax.eval_shape(lambda: model.init_cache(2, 8)).layers
    assert {leaf.dtype for leaf in jax.tree.leaves(layers)} == {jnp.dtype("bfloat16")}


def test_a_tied_head_has_one_parameter_less(make):
    model, untied = make(head=TiedLMHead), make()
    assert len(jax.tree.leaves(model)) == len(jax.tree.leaves(untied)) - 1
    head = untied.head.out.w
    head.set_value(model.embedding[...].T)
    np.testing.assert_allclose(run(model), run(untied), rtol=1e-4, atol=1e-5)


def test_a_tied_embedding_gets_gradients_of_input_and_output(make):
    model = make(head=TiedLMHead)
    grad = gradient(model).embedding[...]
    assert (
        jnp.abs(grad).sum(axis=1) > 0
    ).all()  # also of tokens that are not in the input


def test_a_logit_cap_bounds_logits(make):
    plain, capped = run(make()), run(make(logit_cap=0.5))
    assert jnp.abs(plain).max() > 0.5 > jnp.abs(capped).max()
    np.testing.assert_allclose(capped, 0.5 * jnp.tanh(plain / 0.5), atol=1e-5)


@pytest.mark.parametrize(
    "variant, limit", [("pre learned moe", 8), ("pre waves dense", None)]
)
def test_only_learned_positions_limit_the_length(make, variant, limit):
    assert make(variant).max_length == limit


def test_more_tokens_than_positions_are_refused_at_trace_time(make):
    tokens = jnp.zeros((1, 9), "int32")
    with pytest.raises(ValueError, match="9 tokens exceed 8 learned positions"):
        jax.eval_shape(make("pre learned moe"), tokens)
