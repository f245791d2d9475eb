"""The dtypes of parameters and of computation."""

import jax
import jax.numpy as jnp
import pytest

from lmx.core.precision import Precision, upcast


@pytest.mark.parametrize(
    "narrow, wide",
    [
        ("bfloat16", "float32"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
    ],
)
def test_upcast_gives_at_least_32_bits(narrow, wide):
    with jax.enable_x64(True):
        assert upcast(jnp.ones(3, narrow)).dtype == wide


def test_a_cpu_computes_in_float32_by_default():
    assert Precision().compute_dtype == jnp.float32
    assert Precision(compute="bfloat16").compute_dtype == jnp.bfloat16


def test_only_float64_needs_x64():
    assert Precision(params="float64").needs_x64
    assert Precision(compute="float64").needs_x64
    assert not Precision(params="bfloat16", compute="float32").needs_x64
