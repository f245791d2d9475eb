"""What was saved is what is found, and only what is whole is found."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmx.config.names import ConfigError
from lmx.core.sharding import RULES, Mesh
from lmx.train.checkpoint import checkpoints as module
from lmx.train.checkpoint.checkpoints import Checkpoints
from lmx.train.step import TrainState


def made_state(seed, size=64):
    noise = jnp.asarray(np.random.default_rng(seed).normal(size=(8, size)), "float32")
    return TrainState(
        jnp.int32(seed), {"w": noise, "scale": noise[0]}, (noise.astype("bfloat16"),)
    )


def like(state, place=None):
    place = place or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state
    )


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def saved(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, made_state(step))
    checkpoints.wait()


def test_what_is_restored_is_what_was_saved(checkpoints):
    saved(checkpoints, 3)
    state = made_state(3)
    chex.assert_trees_all_equal(state, checkpoints.restore(3, like(state)))


def test_a_part_can_be_restored_alone(checkpoints):
    saved(checkpoints, 3)
    params = made_state(3).params
    found = checkpoints.restore(3, {"params": like(params)})
    chex.assert_trees_all_equal({"params": params}, found)


def test_a_state_moves_to_another_mesh_unchanged(checkpoints):
    wide = Mesh(data=1, fsdp=8).over(jax.devices(), RULES)
    state = jax.device_put(
        made_state(3).params["w"], NamedSharding(wide, PartitionSpec("fsdp"))
    )
    checkpoints.save(3, TrainState(jnp.int32(3), {"w": state}, ()))
    narrow = Mesh(data=2, tensor=4).over(jax.devices(), RULES)
    place = NamedSharding(narrow, PartitionSpec(None, "tensor"))
    checkpoints.wait()
    found = checkpoints.restore(3, {"params": {"w": like(state, place)}})["params"]["w"]
    assert found.sharding == place
    np.testing.assert_array_equal(state, found)


def test_the_newest_few_are_kept_and_never_less_than_one(checkpoints, tmp_path):
    saved(checkpoints, 1, 2, 3, 10)
    assert checkpoints.steps() == [3, 10]
    one = Checkpoints(tmp_path / "one", keep=1)
    for step in (1, 2, 3):
        saved(one, step)
        assert one.steps() == [step]
    assert [path.name for path in one.folder.iterdir()] == ["00000003"]


def test_the_last_state_stays_until_the_next_is_committed(tmp_path):
    one = Checkpoints(tmp_path / "one", keep=1)
    saved(one, 1)
    one.save(2, made_state(2))
    assert one.steps()[:1] == [1]  # the second may be there already, or not yet
    one.wait()
    assert one.steps() == [2]


def test_half_written_states_are_not_listed_and_can_be_cleared(checkpoints):
    saved(checkpoints, 1)
    for name in ("00000002.orbax-checkpoint-tmp", ".old-x", "00000002.orbax-tmp-7"):
        (checkpoints.folder / name / "state").mkdir(parents=True)
    assert checkpoints.steps() == [1]
    checkpoints.clean()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["00000001"]


def test_nothing_saved_is_an_empty_list(checkpoints):
    assert checkpoints.steps() == []
    checkpoints.clean()


@pytest.mark.parametrize("off, other", [(1, "a newer"), (-1, "an older")])
def test_a_state_of_another_schema_is_refused(checkpoints, monkeypatch, off, other):
    with monkeypatch.context() as writer:
        writer.setattr(module, "SCHEMA", module.SCHEMA + off)
        saved(checkpoints, 1)
    with pytest.raises(ConfigError, match=f"written by {other} lmx .schema .*reads 2"):
        checkpoints.restore(1, like(made_state(1)))


def test_training_on_does_not_change_what_is_being_saved(checkpoints):
    state = made_state(1, size=100_000)
    wanted = jax.tree.map(np.array, state)
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    step(made_state(2, size=100_000))  # compiled before the race begins
    checkpoints.save(1, state)
    for _ in range(20):
        state = step(state)
    checkpoints.wait()
    chex.assert_trees_all_equal(wanted, checkpoints.restore(1, like(state)))
