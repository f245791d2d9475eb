"""Contract of output heads."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.layers.linear import LMHead, TiedLMHead

B, T, D, V = 2, 3, 4, 7
KINDS = pytest.mark.parametrize("kind", [LMHead, TiedLMHead])


@pytest.fixture
def inputs():
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], (B, T, D)), jax.random.normal(keys[1], (V, D))


def test_an_lm_head_has_its_own_weight(init, inputs):
    head, (x, table) = LMHead(D, V, init), inputs
    want = np.asarray(x) @ np.asarray(head.out.w[...])
    np.testing.assert_allclose(head(x, table), want, atol=1e-5)
    assert head.out.w.axes == ("embed", "vocab")


def test_a_tied_head_is_the_transposed_embedding(init, inputs):
    head, (x, table) = TiedLMHead(D, V, init), inputs
    np.testing.assert_allclose(
        head(x, table), np.asarray(x) @ np.asarray(table).T, atol=1e-5
    )
    assert jax.tree.leaves(head) == []


@KINDS
def test_logits_have_the_dtype_of_the_vectors(kind, init, inputs):
    x, table = inputs
    y = kind(D, V, init)(x.astype("bfloat16"), table)
    assert (y.shape, y.dtype) == ((B, T, V), jnp.bfloat16)


@KINDS
def test_the_second_call_does_not_recompile(kind, init, inputs):
    call = jax.jit(chex.assert_max_traces(lambda head, x, table: head(x, table), n=1))
    for shift in range(2):
        call(kind(D, V, init), *(array + shift for array in inputs))
