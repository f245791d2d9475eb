"""Sharding constraints and per-device programs by letters, during tracing."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lmx.core import partitioning
from lmx.core.sharding import RULES, Mesh

MESH = Mesh(data=2, context=2, tensor=2)
ROWS = np.arange(4 * 6 * 2.0).reshape(4, 6, 2)


def traced(fn):
    return jax.jit(
        partitioning.with_partitioning(MESH.build(jax.devices(), RULES), RULES, fn)
    )


def test_a_letter_is_split_over_the_axes_longer_than_one_that_its_rule_names():
    found = {}

    def fn(x):
        found.update({letter: partitioning.mesh_axes(letter) for letter in "BTDN"})
        return x

    traced(fn)(0.0)
    assert found == {"B": ("data",), "T": ("context",), "D": (), "N": ("tensor",)}
    assert partitioning.mesh_axes("B") == ()  # outside, nothing is split


def test_a_mesh_axis_splits_the_first_letter_that_names_it():
    found = {}

    def fn(x):
        found.update(
            {of: partitioning.mesh_axes("D", within=of) for of in ("D", "EDF", "BTD")}
        )
        return x

    mesh = Mesh(data=2, fsdp=2, expert=2).build(jax.devices(), RULES)
    jax.jit(partitioning.with_partitioning(mesh, RULES, fn))(0.0)
    assert found == {"D": ("fsdp", "expert"), "EDF": ("fsdp",), "BTD": ()}


def test_the_platform_is_that_of_the_mesh():
    class Far:
        id, platform = 0, "tpu"

    far = jax.sharding.Mesh(np.array([Far()]), ("data",))
    asked = partitioning.with_partitioning(far, RULES, partitioning.platform)
    assert (asked(), partitioning.platform()) == ("tpu", "cpu")


def test_constrain_shards_by_letters_and_keeps_the_values():
    constrained = traced(lambda x: partitioning.constrain(x + 1, "BTN"))(ROWS)
    assert constrained.sharding.spec == PartitionSpec("data", "context", "tensor")
    np.testing.assert_array_equal(constrained, ROWS + 1)
    alone = jnp.asarray(ROWS)
    assert partitioning.constrain(alone, "BTN") is alone
    some = traced(
        lambda x: partitioning.constrain(partitioning.constrain(x, "BTN"), "_D_")
    )(ROWS)
    assert some.sharding.spec == PartitionSpec("data", None, "tensor")
    assert (
        traced(lambda x: partitioning.num_shards("B") * x)(1)
        == partitioning.num_shards("B") + 1
        == 2
    )


def test_the_sum_over_slices_is_the_function_of_all_rows():
    """Within a slice, rows are sharded over its devices."""
    found = []

    def fn(x, scale):
        found.append((x.shape, partitioning.mesh_axes("B")))
        return {"sum": scale.sum() * x.sum(axis=0)}

    slices = Mesh(replica=2, data=2, tensor=2).build(jax.devices(), RULES)
    call = partitioning.with_partitioning(
        slices, RULES, lambda *rows: partitioning.sum_over_slices(fn)(*rows)
    )
    ones = np.ones((4, 1))
    got = jax.jit(call)(ROWS, ones)["sum"]
    np.testing.assert_array_equal(got, fn(ROWS, ones)["sum"] / 2)
    assert found == [((2, 6, 2), ("data",)), ((4, 6, 2), ())]
    with pytest.raises(ValueError, match="3 replicas do not fit 2 slices"):
        partitioning.with_partitioning(
            slices, RULES, lambda: partitioning.vmap_over_replicas(fn, 3)
        )()


def test_an_uneven_constraint_is_refused():
    with pytest.raises(ValueError, match="'length' of size 5 cannot be split evenly"):
        traced(lambda x: partitioning.constrain(x, "BTN"))(ROWS[:, :5])


def test_sums_of_shards_are_the_sum_of_the_whole():
    def share(x, scale):
        assert x.shape == (2, 3, 1)
        assert partitioning.mesh_axes("T") == ()  # within a device nothing is split
        total = jax.lax.psum(scale * x.sum(axis=1), "context")
        return total, x

    def fn(x, scale):
        return partitioning.shard_map(share, ("BTN", ""), ("BN", "BTN"))(x, scale)

    total, same = traced(fn)(ROWS, jnp.asarray(3.0))
    np.testing.assert_array_equal(total, 3 * ROWS.sum(axis=1))
    np.testing.assert_array_equal(same, ROWS)
    grad = jax.jit(jax.grad(lambda x: traced(fn)(x, jnp.asarray(3.0))[0].sum()))(ROWS)
    np.testing.assert_array_equal(grad, np.full_like(ROWS, 3))


def test_shard_map_works_within_vmapped_slices_and_stages():
    """Gradients too, with a loop whose carry starts out replicated."""
    mesh = Mesh(replica=2, data=1, context=2, stage=2).build(jax.devices(), RULES)
    x, weights = ROWS.reshape(2, 2, 6, 2), np.array([[1.0, 2.0], [3.0, 4.0]])

    def share(x, scale):
        def turn(total, _):
            return total + scale * jax.lax.psum(x.sum(axis=1), "context"), None

        total, _ = jax.lax.scan(turn, jnp.zeros_like(x[:, 0]), None, length=3)
        return total[:, None] * x

    def place(x, weight, scale):
        assert [partitioning.mesh_axes(letter) for letter in "TL"] == [("context",), ()]
        return weight * partitioning.shard_map(share, ("BTN", ""), "BTN")(x, scale)

    def total(x, scale):
        def slice_(x, weight):
            return partitioning.vmap_over_axes(("stage",), place, (None, 0, None))(
                x, weight, scale
            )

        return partitioning.vmap_over_replicas(slice_, 2)(x, jnp.asarray(weights)).sum()

    grad = jax.jit(
        jax.value_and_grad(partitioning.with_partitioning(mesh, RULES, total), (0, 1))
    )
    found, (of_x, of_scale) = grad(x, 2.0)
    sums, weight = x.sum(axis=2, keepdims=True), weights.sum(axis=1)
    want = 3 * np.einsum("rbtn,r->", sums**2, weight)
    np.testing.assert_allclose([found, of_scale], [2 * want, want])
    each = 12 * np.einsum("rbtn,r->rbtn", sums, weight)
    np.testing.assert_allclose(of_x, np.broadcast_to(each, x.shape))


def test_an_input_may_be_a_tree_or_none():
    def share(rows, nothing):
        assert nothing is None and partitioning.num_shards("T") == 1
        return rows["x"] + rows["y"]

    def fn(x):
        assert [partitioning.num_shards(letter) for letter in "BTD"] == [2, 2, 1]
        return partitioning.shard_map(share, ("BTN", "N"), "BTN")(dict(x=x, y=x), None)

    np.testing.assert_array_equal(traced(fn)(ROWS), 2 * ROWS)
    assert partitioning.num_shards("T") == 1


class Chip:
    """A device of another machine."""

    platform, process_index, id = "tpu", 0, 0


def test_the_platform_is_that_of_the_mesh_and_not_of_local_devices():
    names = MESH.build(jax.devices(), RULES).axis_names
    chips = np.array([Chip() for _ in range(2)]).reshape(1, 1, 1, 1, 2, 1, 1)
    mesh = jax.sharding.Mesh(chips, names)
    assert partitioning.with_partitioning(mesh, RULES, partitioning.platform)() == "tpu"
    assert partitioning.platform() == "cpu"
    seen = []

    def share(x):
        seen.append(partitioning.platform())
        return x

    traced(lambda x: partitioning.shard_map(share, ["BTN"], "BTN")(x))(ROWS)
    assert seen == ["cpu"]


def test_serialized_collectives_have_the_same_values_and_wait():
    """Their gradients too, in reverse order."""
    moves = [(0, 1), (1, 0)]

    def share(x, y):
        move = partial(jax.lax.ppermute, axis_name="context", perm=moves)
        gather = partial(jax.lax.all_gather, axis_name="context")
        x = move(x)
        y = partitioning.serialize_collective(move, y, x)
        return x, y, partitioning.serialize_collective(gather, x, y).sum(axis=0)

    def fn(x, y):
        letters = ("BTN", "BTN")
        return partitioning.shard_map(share, letters, ("BTN", "BTN", "BTN"))(x, y)

    x, y, total = traced(fn)(ROWS, ROWS + 1)
    swapped = np.concatenate([ROWS[:, 3:], ROWS[:, :3]], axis=1)
    np.testing.assert_array_equal(x, swapped)
    np.testing.assert_array_equal(y, swapped + 1)
    np.testing.assert_array_equal(total, ROWS + swapped)
    cost = jax.jit(jax.grad(lambda *xy: (traced(fn)(*xy)[1] * ROWS).sum(), (0, 1)))
    of_x, of_y = cost(jnp.asarray(ROWS), jnp.asarray(ROWS + 1))
    np.testing.assert_array_equal(of_x, np.zeros_like(ROWS))
    np.testing.assert_array_equal(of_y, swapped)
    text = jax.jit(traced(fn)).lower(ROWS, ROWS).compile().as_text()
    assert len(re.findall(r"= \S+ collective-permute", f"{text}")) == 2
