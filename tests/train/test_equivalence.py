"""Microbatches, sharding and packing do not change the loss and gradient of a batch.

In float64, where rounding cannot hide a fault, auxiliary losses included.
"""

import functools
import itertools

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from lmx.core import partitioning, rng
from lmx.core.batch import Batch
from lmx.core.sharding import RULES, Mesh
from lmx.train.program import batch_shardings
from lmx.train.step import StepConfig, accumulate_gradients
from tests.hash_init import HASHED

pytestmark = pytest.mark.usefixtures("x64")

T, V, DOCUMENTS = 16, 8, 128  # rows enough for 8 devices in each of 8 parts
ALL = list(
    itertools.product(("moe", "sigmoid"), ("packed", "padded"), (1, 2, 8), (1, 2, 8))
)
BY_DAY = ("moe", "padded", 2, 2)
CASES = [
    case if case == BY_DAY else pytest.param(*case, marks=pytest.mark.nightly)
    for case in ALL
    if case[1:] != ("packed", 1, 1)  # which is what the others are held against
]


def document(number):
    """Tokens, targets, weights and positions of a document of 3 to 8 tokens."""
    noise = np.random.default_rng(number)
    length = noise.integers(3, 9)
    tokens, targets = noise.integers(0, V, (2, length))
    return tokens, targets, noise.random(length), np.arange(length)


def row(documents):
    """Documents one after the other, padded to T tokens."""
    found = np.zeros((5, T))
    end = 0
    for number, parts in enumerate(documents, 1):
        begin, end = end, end + len(parts[0])
        found[:4, begin:end] = parts
        found[4, begin:end] = number
    return found


def laid_out(layout):
    """The documents, two in a row or one in each."""
    every = [document(number) for number in range(DOCUMENTS)]
    each = 2 if layout == "packed" else 1
    rows = [row(every[at : at + each]) for at in range(0, DOCUMENTS, each)]
    fields = zip(Batch._fields, np.stack(rows, axis=1), strict=True)
    found = {name: field.astype("int32") for name, field in fields}
    weights_BT = np.stack(rows, axis=1)[2].astype("float32")
    return Batch(**found | dict(weights=weights_BT))


@pytest.fixture(scope="module")
def sums_of(tiny):
    """The gradient of the total, the loss and its means, cached."""

    @functools.cache
    def sums_of(kind, layout, parts, width):
        overrides = [f"Precision.{of}=float64" for of in ("params", "compute")]
        overrides += [HASHED, "Decoder.precision=@Precision()"]
        page = tiny(*overrides, kind=kind).build()
        graph, params = nnx.split(page.model(nnx.Rngs(0)))
        rate = page.schedule.build(1)
        recipe = StepConfig(graph, page.loss, page.optimizer(rate), rate, 0, parts)
        batch = laid_out(layout)
        keys = rng.fold(0, 0, "dropout", len(batch.tokens))
        mesh = Mesh(data=width).build(jax.devices(), RULES)
        rows = batch_shardings(batch, mesh, RULES)
        take = partitioning.with_partitioning(
            mesh, RULES, functools.partial(accumulate_gradients, recipe)
        )
        return jax.device_get(jax.jit(take)(params, jax.device_put(batch, rows), keys))

    return sums_of


@pytest.mark.parametrize(("kind", "layout", "parts", "width"), CASES)
def test_microbatches_devices_and_packing_do_not_change_the_gradient(
    sums_of, kind, layout, parts, width
):
    whole = sums_of(kind, "packed", 1, 1)
    other = sums_of(kind, layout, parts, width)
    chex.assert_trees_all_close(other[1:], whole[1:], rtol=1e-9)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole[0]))
    chex.assert_trees_all_close(other[0], whole[0], rtol=1e-9, atol=1e-12 * largest)
    assert whole[1].total.dtype == np.float64 and "balance" in whole[2]


def test_packed_rows_have_the_documents_of_padded_ones():
    packed, padded = laid_out("packed"), laid_out("padded")
    assert len(padded.tokens) == 2 * len(packed.tokens)
    for one, other in zip(packed[:4], padded[:4], strict=True):
        live = one[packed.segments > 0], other[padded.segments > 0]
        np.testing.assert_array_equal(*live)
