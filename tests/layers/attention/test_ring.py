"""Ring attention: equal to one device, with bounded communication and memory."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core import partitioning
from lmx.core.sharding import RULES, Mesh
from lmx.layers import mask
from lmx.layers.attention.backend import AttentionMask
from lmx.layers.attention.reference import ReferenceAttention
from lmx.layers.attention.ring import RingAttention

B, N, K, H = 2, 4, 2, 4
ALL = dict(packed=True, logit_cap=2.0, sink=True)
CASES = [
    (Mesh(data=1, context=2), 12, {}),
    (Mesh(data=1, context=8), 48, ALL),
    (Mesh(data=1, context=8), 64, dict(window=9, **ALL)),
    (Mesh(data=2, context=2, tensor=2), 24, ALL),
]
NIGHTLY = [
    (Mesh(data=1, context=4), 24, dict(packed=True)),
    (Mesh(data=1, context=4), 24, dict(window=1)),
    (Mesh(data=1, context=3), 30, ALL),
    (Mesh(data=1, context=8), 64, dict(window=40, **ALL)),
    (Mesh(data=1, context=8), 48, dict(window=48)),
    (Mesh(fsdp=2, data=1, context=4), 24, dict(window=7, **ALL)),
]


def make_program(
    mesh, kernel, length, window=None, logit_cap=None, packed=False, sink=False
):
    """A program for outputs and gradients on a mesh, and its arguments."""
    rng = np.random.default_rng(0)
    shapes = [(B, length, heads, H) for heads in (N, K, K)] + [(N,)] * sink
    arrays = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]
    segments = np.ones((B, length), "int32")
    if packed:
        segments[0, length // 3 :] = 2
        segments[1, -3:] = 0

    def total(arrays, segments):
        q, k, v = (partitioning.constrain(x, "BTNH") for x in arrays[:3])
        info = mask.describe_tokens(mask.positions_from_segments(segments), segments)
        seen = AttentionMask(info, info, window)
        y = kernel(q, k, v, seen, logit_cap=logit_cap, sink=arrays[3] if sink else None)
        return (jnp.sin(y) @ jnp.arange(1.0, H + 1)).sum(), y

    program = jax.grad(total, has_aux=True)
    places = mesh.build(jax.devices(), RULES)
    return (
        jax.jit(partitioning.with_partitioning(places, RULES, program)),
        arrays,
        segments,
    )


def listed(cases, marks=()):
    return [
        pytest.param(
            *case, marks=marks, id=f"{case[0]}".partition("(")[2] + f"{case[1:]}"
        )
        for case in cases
    ]


@pytest.mark.parametrize(
    ("mesh", "length", "how"), [*listed(CASES), *listed(NIGHTLY, pytest.mark.nightly)]
)
def test_a_sharded_row_equals_an_unsharded_one(mesh, length, how):
    with jax.enable_x64(True):
        program, *arrays = make_program(mesh, RingAttention(block=2), length, **how)
        whole, *_ = make_program(Mesh(data=1), ReferenceAttention(), length, **how)
        got, want = (jax.device_get(fn(*arrays)) for fn in (program, whole))
    chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-9)


def equations(jaxpr, times=1):
    """Every equation of a program, and its number of executions."""
    for eqn in jaxpr.eqns:
        yield eqn, times
        inner = times * eqn.params.get("length", 1)
        for part in jax.tree.leaves(
            eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield from equations(part, inner)


def count_sent(window):
    """Elements of keys and values that a device sends in the forward pass."""
    mesh = Mesh(data=1, context=8).build(jax.devices(), RULES)

    def attend(q, k, v):
        segments = jnp.ones(q.shape[:2], "int32")
        info = mask.describe_tokens(segments, segments)
        return RingAttention(block=8)(q, k, v, AttentionMask(info, info, window))

    q, k, v = (
        jax.ShapeDtypeStruct((B, 128, heads, H), "float32") for heads in (N, K, K)
    )
    program = jax.make_jaxpr(partitioning.with_partitioning(mesh, RULES, attend))(
        q, k, v
    )
    return sum(
        times * eqn.invars[0].aval.size
        for eqn, times in equations(program.jaxpr)
        if eqn.primitive.name == "ppermute" and eqn.invars[0].aval.ndim == 5
    )


def test_keys_beyond_a_window_are_not_sent(monkeypatch):
    monkeypatch.setattr(
        partitioning, "platform", lambda: "tpu"
    )  # where serialize_collective adds nothing
    each = 2 * B * (128 // 8) * K * H  # keys and values that a device has
    assert [count_sent(window) / each for window in (None, 1, 17, 18, 34)] == [
        7,
        0,
        1,
        2,
        3,
    ]


def test_keys_are_permuted_and_never_gathered():
    mesh, how = Mesh(data=1, context=4), dict(packed=True)
    ring, by_xla = (
        f"{program.lower(*arrays).compile().as_text()}"
        for program, *arrays in (
            make_program(mesh, kernel, 32, **how)
            for kernel in (RingAttention(block=4), ReferenceAttention())
        )
    )
    gathered = re.compile(r"= f\d+\S* all-gather")
    assert "collective-permute" in ring and not gathered.search(ring)
    assert gathered.search(by_xla)


@pytest.mark.parametrize("mesh", [Mesh(data=1), Mesh(data=1, context=2)], ids=repr)
def test_no_array_grows_with_the_square_of_the_length(mesh):
    def largest(length):
        program, *arrays = make_program(mesh, RingAttention(block=4), length)
        found = equations(program.trace(*arrays).jaxpr.jaxpr)
        return max(x.aval.size for eqn, _ in found for x in eqn.outvars)

    assert largest(256) == 2 * largest(128)
