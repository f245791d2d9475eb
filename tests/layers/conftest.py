"""Fixtures of layer tests."""

import chex
import pytest
from flax import nnx

from lmx.layers.init import Init
from tests.hash_init import HashInit


@pytest.fixture(autouse=True)
def count_traces_anew():
    """For `chex.assert_max_traces`, which counts by line of source over all tests."""
    chex.clear_trace_counter()


@pytest.fixture
def init():
    return Init(nnx.Rngs(0), HashInit(), depth=2)
