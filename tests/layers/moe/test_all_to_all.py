"""All-to-all implementations against a loop over rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from lmx.layers.moe.all_to_all import (
    AllToAllPlan,
    PaddedAllToAll,
    RaggedAllToAll,
    exchange,
)

W, ROWS, CAPACITY, D = 4, 6, 5, 3
PLAN = AllToAllPlan(("expert",), ROWS, CAPACITY)
COUNTS = np.array([[1, 0, 5, 0], [2, 2, 1, 1], [0, 5, 0, 1], [3, 0, 3, 0]], "int32")
X = np.random.default_rng(0).normal(size=(W, ROWS, D)).astype("float32")


def reference_ragged_all_to_all(
    operand, output, begins, sizes, there, coming, *, axis_name
):
    """`jax.lax.ragged_all_to_all` as documented, since XLA:CPU lacks it."""
    me, place = jax.lax.axis_index(axis_name), jnp.arange(len(output))
    operands, begins, sizes, there = (
        jax.lax.all_gather(x, axis_name) for x in (operand, begins, sizes, there)
    )
    for w in range(W):
        inside = (place >= there[w, me]) & (place < there[w, me] + sizes[w, me])
        got = operands[w, place - there[w, me] + begins[w, me]]
        output = jnp.where(inside[:, None] & (sizes[w, me] == coming[w]), got, output)
    return output


@pytest.fixture(params=[PaddedAllToAll(), RaggedAllToAll()], ids=str)
def all_to_all(request, monkeypatch):
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", reference_ragged_all_to_all)
    dispatch = partial(request.param.dispatch, plan=PLAN)
    combine = partial(request.param.combine, plan=PLAN)
    return partial(exchange, dispatch, combine), partial(exchange, combine, dispatch)


def run_on_devices(fn, *arrays):
    """Runs `fn` on every device."""
    mesh = jax.make_mesh(
        (W,), PLAN.axes, axis_types=(AxisType.Auto,), devices=jax.devices()[:W]
    )
    split = PartitionSpec(*PLAN.axes)

    def own(*arrays):
        return jax.tree.map(lambda x: x[None], fn(*(x[0] for x in arrays)))

    call = jax.shard_map(
        own, mesh=mesh, in_specs=(split,) * len(arrays), out_specs=split
    )
    return jax.jit(call)(*arrays)


def count_moved(rows):
    """What each device receives, row by row."""
    got = np.zeros((W, W * CAPACITY, D), rows.dtype)
    for one in range(W):
        begin = 0
        for other in range(W):
            for place in range(COUNTS[one, other]):
                got[other, one * CAPACITY + place] = rows[one, begin + place]
            begin += COUNTS[one, other]
    return got


def test_rows_are_sent_to_their_devices_and_back(all_to_all):
    dispatch, combine = all_to_all

    def round_trip(x):
        got = dispatch(x, jnp.asarray(COUNTS))
        return got, combine(2 * got, jnp.asarray(COUNTS))

    got, back = run_on_devices(round_trip, X)
    np.testing.assert_array_equal(got, count_moved(X))
    np.testing.assert_array_equal(back, 2 * X)


def test_gradients_are_sent_back(all_to_all):
    dispatch, combine = all_to_all
    grads = np.random.default_rng(1).normal(size=(W, W * CAPACITY, D)).astype("float32")

    def gradients(x, grad):
        table = jnp.asarray(COUNTS)
        got, back = jax.vjp(lambda x: dispatch(x, table), x)
        _, forth = jax.vjp(lambda y: combine(y, table), got)
        return back(grad)[0], forth(x)[0]

    back, forth = run_on_devices(gradients, X, grads)
    np.testing.assert_allclose(
        (back * X).sum(), (grads * count_moved(X)).sum(), rtol=1e-5
    )
    np.testing.assert_array_equal(forth, count_moved(X))
