"""Sharding of logical axes over the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from lmx.core.sharding import RULES, Mesh, shardings, spec

WHOLE = PartitionSpec()


def over(mesh: Mesh, rules=RULES, devices=8):
    return mesh.build(jax.devices()[:devices], rules)


@pytest.fixture(scope="module")
def mesh():
    return over(Mesh(data=2, fsdp=2, tensor=2))


def test_data_uses_all_devices_that_are_left():
    assert over(Mesh()).shape["data"] == 8
    assert over(Mesh(fsdp=2, tensor=2)).shape["data"] == 2
    assert over(Mesh(tensor=8)).shape["data"] == 1


def test_a_mesh_may_use_fewer_devices_than_there_are():
    assert over(Mesh(data=3)).size == 3


@pytest.mark.parametrize(
    "mesh, message",
    [
        (Mesh(data=3, tensor=4), "data=3 x tensor=4 needs 12 devices and there are 8"),
        (Mesh(tensor=16), "tensor=16 needs 16 devices and there are 8: make an axis"),
        (Mesh(tensor=3), "8 devices are not a multiple of 3.*Mesh.data=2 to use"),
    ],
)
def test_an_impossible_mesh_is_refused_with_a_fix(mesh, message):
    with pytest.raises(ValueError, match=message):
        over(mesh)


def test_an_axis_that_no_rule_names_is_refused():
    idle = {name: () for name, axes in RULES.items() if "stage" in axes}
    with pytest.raises(ValueError, match="no rule splits anything over .* 'stage'"):
        Mesh(stage=2).build(jax.devices(), dict(RULES) | idle)


@pytest.mark.parametrize("size", [0, -1])
def test_an_axis_size_below_one_is_refused(size):
    with pytest.raises(ValueError, match=f"'fsdp' needs 1 device or more, not {size}"):
        Mesh(fsdp=size)


@pytest.mark.parametrize(
    "rule, message",
    [
        ({"mpl": ("tensor",)}, "no logical axis is named 'mpl'; did you mean 'mlp'"),
        ({"mlp": ("tensr",)}, "no mesh axis is named 'tensr'; did you mean 'tensor'"),
    ],
)
def test_a_rule_with_an_unknown_name_is_refused_with_the_nearest(rule, message):
    with pytest.raises(ValueError, match=message):
        over(Mesh(), dict(RULES) | rule)


def test_a_matrix_is_sharded_by_the_rules(mesh):
    got = spec(("embed", "heads", "head_dim"), (8, 4, 3), mesh, RULES)
    assert got == PartitionSpec(("fsdp",), ("tensor",), None)


def test_rows_are_sharded_over_all_data_axes(mesh):
    got = spec(("batch", "length"), (8, 3), mesh, RULES)
    assert got == PartitionSpec(("data", "fsdp"), None)


def test_a_mesh_axis_splits_one_dimension_only(mesh):
    assert spec(("mlp", "heads"), (8, 8), mesh, RULES)[1] is None


def test_an_axis_of_one_device_splits_nothing():
    mesh = over(Mesh(data=8))
    assert spec(("embed", "mlp"), (3, 5), mesh, RULES) == PartitionSpec(None, None)


def test_an_uneven_split_is_refused_with_a_fix(mesh):
    with pytest.raises(ValueError, match="'kv_heads' of size 1 cannot be split.*whole"):
        spec(("embed", "kv_heads"), (8, 1), mesh, RULES)


def test_the_shards_of_all_devices_make_up_the_parameter(mesh):
    values = jnp.arange(32.0).reshape(8, 4)
    param = nnx.Param(values, axes=("embed", "mlp"), in_dims=("embed",))
    place = shardings({"w": param}, mesh, RULES)["w"]
    placed = jax.device_put(values, place)
    for shard in placed.addressable_shards:
        assert shard.data.shape == (4, 2)
        np.testing.assert_array_equal(shard.data, values[shard.index])


def test_arrays_without_axes_are_replicated(mesh):
    tree = {"count": jnp.zeros(()), "bare": nnx.Param(jnp.zeros(3))}
    places = shardings(tree, mesh, RULES)
    assert {place.spec for place in places.values()} == {WHOLE}


@pytest.mark.parametrize("optimizer", [optax.adam(0.1), optax.adafactor(0.1)])
def test_moments_are_sharded_like_their_parameters(mesh, optimizer):
    params = {
        "w": nnx.Param(jnp.zeros((128, 256)), axes=("embed", "mlp")),
        "gain": nnx.Param(jnp.zeros(128), axes=("embed",)),
    }
    state = jax.eval_shape(optimizer.init, params)
    places = jax.tree.leaves(shardings(state, mesh, RULES))
    split = {
        (128, 256): PartitionSpec(("fsdp",), ("tensor",)),
        (128,): PartitionSpec(("fsdp",)),
    }
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert not all(place.is_fully_replicated for place in places)
    for shape, place in zip(shapes, places, strict=True):
        assert place.spec in (WHOLE, split.get(shape))


def test_masked_state_of_an_optimizer_has_shardings_too(mesh):
    params = {"w": nnx.Param(jnp.zeros((8, 8)), axes=("embed", "mlp"))}
    init = optax.masked(optax.adam(0.1), {"w": False}).init
    places = shardings(jax.eval_shape(init, params), mesh, RULES)
    state = jax.jit(init, out_shardings=places)(params)
    assert all(x.is_fully_replicated for x in jax.tree.leaves(state))
