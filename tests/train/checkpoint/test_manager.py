"""Checkpoints: what was saved is restored, on any mesh."""

import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmx.core.sharding import RULES, Mesh
from lmx.run import run_dir
from lmx.train.checkpoint import manager, reader
from lmx.train.checkpoint.digest import combine_digests
from lmx.train.checkpoint.manager import CheckpointManager, digest_shards
from lmx.train.checkpoint.policy import CheckpointPolicy
from lmx.train.checkpoint.reader import CheckpointReader
from tests.train.checkpoint.conftest import abstract, make_state, reader_of, save
from tests.train.checkpoint.test_digest import checksum, compute_digests


def test_a_restored_state_equals_the_saved_one(checkpoints):
    save(checkpoints, 3)
    state = make_state(3)
    chex.assert_trees_all_equal(state, checkpoints.restore(3, abstract(state)))


def test_a_part_can_be_restored_alone(checkpoints):
    save(checkpoints, 3)
    params = make_state(3).params
    restored = checkpoints.restore(3, {"params": abstract(params)})
    chex.assert_trees_all_equal({"params": params}, restored)


@pytest.mark.parametrize("piece_bytes", [1, 700, 1 << 20])
def test_tensors_are_restored_on_another_mesh_unchanged(
    checkpoints, monkeypatch, piece_bytes
):
    monkeypatch.setattr(reader, "PIECE_BYTES", piece_bytes)
    wide = Mesh(data=2, fsdp=4).build(jax.devices(), RULES)
    keys = iter(jax.random.split(jax.random.key(0), 9))
    arrays = {
        "line": jax.random.normal(next(keys), (301,)),
        "half": jax.random.normal(next(keys), (30, 70), "bfloat16"),
        "columns": jax.random.normal(next(keys), (6, 4, 400)),
        "inside": jnp.arange(3),
        "scalar": jnp.int32(5),
    }
    sharding = NamedSharding(wide, PartitionSpec("data", None, "fsdp"))
    checkpoints.save(
        3, arrays | {"columns": jax.device_put(arrays["columns"], sharding)}
    )
    checkpoints.wait()
    by_tensorstore, read = [], CheckpointReader.read_part
    with monkeypatch.context() as patch:
        patch.setattr(
            CheckpointReader,
            "read_part",
            lambda *args: by_tensorstore.append(args[1]) or read(*args),
        )
        sums = reader_of(checkpoints, 3).compute_checksums(dict.fromkeys(arrays))
    for name, found in sums.items():
        np.testing.assert_array_equal(found, checksum(arrays[name]))
    assert by_tensorstore == ["inside", "scalar"]  # stored in the tree itself
    narrow = Mesh(data=2, tensor=4).build(jax.devices(), RULES)
    for axes in ((), (None, "tensor"), ("data", "tensor")):
        sharding = NamedSharding(narrow, PartitionSpec(*axes))
        target = abstract(arrays) | abstract({"columns": arrays["columns"]}, sharding)
        restored = checkpoints.restore(3, target)
        assert restored["columns"].sharding == sharding
        chex.assert_trees_all_equal(arrays, restored)


def test_the_newest_checkpoints_are_kept_and_never_less_than_one(checkpoints, tmp_path):
    save(checkpoints, 1, 2, 3, 10)
    assert checkpoints.list_steps() == [3, 10]
    one = CheckpointManager(tmp_path / "one", keep=1)
    for step in (1, 2, 3):
        save(one, step)
        assert one.list_steps() == [step]
    assert [path.name for path in one.folder.iterdir()] == ["00000003"]


def test_the_last_checkpoint_stays_until_the_next_is_committed(tmp_path):
    one = CheckpointManager(tmp_path / "one", keep=1)
    save(one, 1)
    one.save(2, make_state(2))
    assert one.list_steps()[:1] == [1]  # the second may be committed already
    one.wait()
    assert one.list_steps() == [2]


def test_unfinished_checkpoints_are_not_listed_and_are_removed(checkpoints):
    save(checkpoints, 1)
    for name in (
        "00000002.orbax-checkpoint-tmp",
        ".lmx-removed-x",
        "00000002.orbax-tmp-7",
    ):
        (checkpoints.folder / name / "folder").mkdir(parents=True)
    assert checkpoints.list_steps() == [1]
    checkpoints.prepare()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["00000001"]
    (checkpoints.folder / "00000002.orbax-checkpoint-tmp").mkdir()
    save(checkpoints, 3)
    assert {path.name for path in checkpoints.folder.iterdir()} == {
        "00000001",
        "00000003",
    }


def test_files_and_folders_of_a_user_among_checkpoints_stay(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk", target_is_directory=True)
    one = CheckpointManager(tmp_path / "link", keep=1)
    save(one, 7)
    names = ["best", "backup-of-4", ".old-notes", "2024", "\u00b2", "00000004"]
    for name in names:
        (tmp_path / "disk" / name).mkdir()
        (tmp_path / "disk" / name / "mine").write_text("my only copy")
    one.prepare()
    save(one, 8)
    kept = {path.parent.name for path in (tmp_path / "disk").glob("*/mine")}
    assert kept == {*names} and one.list_steps() == [4, 8]


def test_a_new_folder_has_no_steps(checkpoints):
    assert checkpoints.list_steps() == []
    checkpoints.prepare()


def test_further_training_does_not_change_what_is_being_saved(checkpoints):
    state = make_state(1, size=100_000)
    expected = jax.tree.map(np.array, state)
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    step(make_state(2, size=100_000))  # compiles
    checkpoints.save(1, state)
    for _ in range(20):
        state = step(state)
    checkpoints.wait()
    chex.assert_trees_all_equal(expected, checkpoints.restore(1, abstract(state)))


def test_the_metadata_has_digests_and_lineage(tmp_path):
    first = CheckpointManager(tmp_path, origin={"run_id": "abc", "commit": "old"})
    first.extra_metadata["skipped"] = [[1, 2]]
    first.save(3, make_state(3))
    first.wait()
    metadata = first.read_metadata(3)
    assert metadata["schema"] == run_dir.SCHEMA and metadata["step"] == 3
    assert metadata["run_id"] == "abc" and metadata["parent"] is None
    assert metadata["digests"] == compute_digests(make_state(3))
    assert metadata["root"] == combine_digests(metadata["digests"])
    assert metadata["extra"] == {"skipped": [[1, 2]]}
    second = CheckpointManager(tmp_path, origin={"run_id": "abc", "commit": "new"})
    state = second.restore_newest(
        abstract(make_state(3)), CheckpointPolicy().handle_damage
    )
    save(second, 4)
    parent = {"step": 3, "root": metadata["root"]}
    metadata = second.read_metadata(4)
    assert metadata["parent"] == parent
    lineage = [(a["commit"], a["parent"]) for a in metadata["lineage"]]
    assert lineage == [("old", None), ("new", parent)]
    chex.assert_trees_all_equal(state, make_state(3))


def test_digests_on_disk_do_not_depend_on_the_mesh(tmp_path):
    state = make_state(3)
    mesh = Mesh(data=2, fsdp=4).build(jax.devices(), RULES)
    specs = [PartitionSpec(), PartitionSpec("fsdp"), PartitionSpec(None, "data")]
    for number, spec in enumerate(specs):
        sharded = jax.device_put(state.params["w"], NamedSharding(mesh, spec))
        one = CheckpointManager(tmp_path / f"{number}")
        one.save(3, state._replace(params={**state.params, "w": sharded}))
        one.wait()
        assert one.read_metadata(3)["digests"] == compute_digests(state)
        assert not reader_of(one, 3).verify()


def test_a_step_during_a_save_still_reuses_the_memory_of_its_arrays(checkpoints):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = step(jnp.zeros(1 << 16))
    pointer = x.unsafe_buffer_pointer()
    for number in (1, 2):
        checkpoints.save(number, {"x": x})
        x = step(x)
        assert x.unsafe_buffer_pointer() == pointer
    checkpoints.wait()
    for number in (1, 2):
        restored = checkpoints.restore(number, abstract({"x": x}))
        np.testing.assert_array_equal(restored["x"], np.full(1 << 16, number))


def test_a_save_waits_for_the_one_before_it(checkpoints, monkeypatch):
    in_progress = []

    def digest_slowly(arrays, shards, message):
        in_progress.append(message)
        assert len(in_progress) == 1
        time.sleep(0.2)
        digests = digest_shards(arrays, shards, message)
        in_progress.clear()
        return digests

    monkeypatch.setattr(manager, "digest_shards", digest_slowly)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step))
        assert set(range(max(1, step - 1), step)) <= set(checkpoints.list_steps())
    checkpoints.wait()
    assert checkpoints.list_steps() == [2, 3]
