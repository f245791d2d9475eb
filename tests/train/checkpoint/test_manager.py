"""Checkpoints: what was saved is restored, and only intact ones are used."""

import gc
import json
import resource
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmx.config.registry import ConfigError
from lmx.core.sharding import RULES, Mesh
from lmx.run import run_dir
from lmx.train.checkpoint import manager, reader
from lmx.train.checkpoint.digest import combine_digests
from lmx.train.checkpoint.manager import CheckpointManager, SaveError
from lmx.train.checkpoint.policy import CheckpointPolicy
from lmx.train.checkpoint.reader import CheckpointReader, DamageError
from lmx.train.step import TrainState
from tests.train.checkpoint.damage import flip, truncate
from tests.train.checkpoint.test_digest import checksum, compute_digests


def make_state(seed, size=64):
    noise = jnp.asarray(np.random.default_rng(seed).normal(size=(8, size)), "float32")
    return TrainState(
        jnp.int32(seed), {"w": noise, "scale": noise[0]}, (noise.astype("bfloat16"),)
    )


def abstract(state, sharding=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
    )


@pytest.fixture
def checkpoints(tmp_path):
    return CheckpointManager(tmp_path / "checkpoints", keep=2)


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, make_state(step))
    checkpoints.wait()


def reader_of(checkpoints, step):
    return CheckpointReader(checkpoints.directory.step_path(step))


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
    by_tensorstore, read = [], CheckpointReader._read_part
    with monkeypatch.context() as patch:
        patch.setattr(
            CheckpointReader,
            "_read_part",
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
    for name in ("00000002.orbax-checkpoint-tmp", ".old-x", "00000002.orbax-tmp-7"):
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


def test_a_new_folder_has_no_steps(checkpoints):
    assert checkpoints.list_steps() == []
    checkpoints.prepare()


@pytest.mark.parametrize("offset, age", [(1, "a newer"), (-1, "an older")])
def test_a_checkpoint_of_another_schema_is_refused(
    checkpoints, monkeypatch, offset, age
):
    with monkeypatch.context() as other:
        other.setattr(manager, "SCHEMA", run_dir.SCHEMA + offset)
        other.setattr(run_dir, "SCHEMA", run_dir.SCHEMA + offset)
        save(checkpoints, 1)
    with pytest.raises(ConfigError, match=f"written by {age} lmx .schema .*reads sch"):
        checkpoints.restore(1, abstract(make_state(1)))


def test_a_checkpoint_in_the_format_of_schema_3_is_refused_and_stays(checkpoints):
    (checkpoints.folder / "00000001" / "meta").mkdir(parents=True)
    with pytest.raises(ConfigError, match="an older lmx .schema 3; this lmx reads"):
        checkpoints.restore_newest(
            abstract(make_state(1)), CheckpointPolicy().handle_damage
        )
    assert checkpoints.list_steps() == [1]


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


def edit_metadata(path, _):
    file = path / reader.METADATA
    metadata = json.loads(file.read_text())
    file.write_text(json.dumps(metadata | {"root": "0" * 32}))


DAMAGES = {
    "flipped": (flip, "params.w is not what was saved"),
    "truncated": (truncate, "params.w cannot be read"),
    "no metadata": (lambda path, _: (path / reader.METADATA).unlink(), "is missing"),
    "no manifest": (
        lambda path, _: (path / "state/manifest.ocdbt").unlink(),
        "cannot be read",
    ),
    "partial metadata": (
        lambda path, _: (path / reader.METADATA).write_text("{"),
        "cannot be read",
    ),
    "edited metadata": (edit_metadata, "does not match its root digest"),
}


@pytest.mark.parametrize("damage, reason", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_named_and_quarantined_for_the_one_before(
    checkpoints, capsys, damage, reason
):
    save(checkpoints, 1, 2)
    path, target = checkpoints.directory.step_path(2), abstract(make_state(1))
    damage(path, "params.w")
    faults = CheckpointReader(path).verify()
    assert any(reason in str(fault) for fault in faults)
    with pytest.raises(DamageError, match=reason):
        checkpoints.restore_newest(
            target, CheckpointPolicy(damaged="refuse").handle_damage
        )
    assert checkpoints.list_steps() == [1, 2]
    state = checkpoints.restore_newest(target, CheckpointPolicy().handle_damage)
    chex.assert_trees_all_equal(state, make_state(1))
    warning = capsys.readouterr().err
    assert "DAMAGED, quarantined" in warning and reason in warning
    checkpoints.prepare()
    assert {path.name for path in checkpoints.folder.iterdir()} == {
        "00000001",
        "00000002.damaged",
    }
    save(checkpoints, 2)
    assert checkpoints.list_steps() == [1, 2]


def test_damage_is_reported_with_its_file_and_only_if_it_is_read(checkpoints):
    state = TrainState(jnp.int32(1), {"w": jnp.ones((64, 64)), "v": jnp.ones(2000)}, ())
    checkpoints.save(1, state)
    checkpoints.wait()
    flip(checkpoints.directory.step_path(1), "params.w")
    (fault,) = reader_of(checkpoints, 1).verify()
    (place,) = reader_of(checkpoints, 1).chunk_locations["params.w"]
    assert (fault.file, fault.tensor) == (f"state/{place.file}", "params.w")
    with pytest.raises(DamageError, match=f"{fault.file}: params.w is not what was"):
        checkpoints.restore(1, abstract(state))
    part = {"params": {"v": abstract(state).params["v"]}}
    chex.assert_trees_all_equal(
        checkpoints.restore(1, part)["params"]["v"], state.params["v"]
    )


def test_a_run_without_an_intact_checkpoint_does_not_start_again(checkpoints):
    save(checkpoints, 1, 2)
    target = abstract(make_state(1))
    for step in (1, 2):
        truncate(checkpoints.directory.step_path(step), "params.w")
    for _ in range(2):
        with pytest.raises(ConfigError, match="no intact checkpoint to resume from"):
            checkpoints.restore_newest(target, CheckpointPolicy().handle_damage)
        assert checkpoints.list_steps() == [1, 2]
    for step in (1, 2):
        checkpoints.directory.quarantine(step)
    with pytest.raises(ConfigError, match="no intact checkpoint to resume from"):
        checkpoints.restore_newest(target, CheckpointPolicy().handle_damage)


def test_a_checkpoint_of_another_model_is_not_called_damaged(checkpoints):
    save(checkpoints, 1)
    state = make_state(1)
    with pytest.raises(ConfigError, match="has shape .*it is another model"):
        checkpoints.restore(1, abstract(make_state(1, size=32)))
    other = state._replace(params={"u": state.params["w"]})
    with pytest.raises(ConfigError, match="has no params.u: it is a checkpoint of ano"):
        checkpoints.restore(1, abstract(other))


# Orbax closes the event loop of a failed save before its other writes end.
failing = pytest.mark.filterwarnings(
    "ignore:.*:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def small_files():
    """Limits files to 20,000 bytes; the result lifts the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    time.sleep(0.5)  # until those writes end, so that the next test does not see them
    gc.collect()


@failing
def test_failed_saves_are_reported_and_do_not_stop_later_ones(
    checkpoints, small_files, capsys
):
    save(checkpoints, 1)
    large = make_state(1, size=5000)
    for step in (2, 3):
        checkpoints.save(step, large)
    with pytest.raises(SaveError, match="File too large"):
        checkpoints.wait()
    small_files()
    save(checkpoints, 4)
    assert checkpoints.list_steps() == [1, 4]
    assert checkpoints.consecutive_failures == 0
    warning = capsys.readouterr().err
    assert "SAVE FAILED, 1 of the 3" in warning and "SAVE FAILED, 2 of the 3" in warning
    assert not reader_of(checkpoints, 1).verify()


@failing
def test_three_failed_saves_in_a_row_end_the_run(checkpoints, small_files):
    save(checkpoints, 1)
    large = make_state(1, size=5000)
    with pytest.raises(SaveError, match="could not be saved"):
        for step in range(2, 9):
            checkpoints.save(step, large)
    assert step == 5 and checkpoints.list_steps() == [1]
    checkpoints.prepare()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["00000001"]


@failing
def test_a_failed_last_save_is_an_error(checkpoints, small_files):
    checkpoints.save(2, make_state(2, size=5000))
    with pytest.raises(SaveError, match="could not be saved"):
        checkpoints.wait()


def test_a_checkpoint_that_does_not_read_back_as_written_is_not_used(
    tmp_path, monkeypatch
):
    one = CheckpointManager(tmp_path, keep=1)
    save(one, 1)

    read = CheckpointReader.compute_checksums

    def flip_and_read(self, parts):
        flip(self.path, "params.w")
        return read(self, parts)

    with monkeypatch.context() as disk:
        disk.setattr(CheckpointReader, "compute_checksums", flip_and_read)
        one.save(2, make_state(2))
        with pytest.raises(SaveError, match="params.w is not what was saved"):
            one.wait()
    assert one.list_steps() == [1] and not reader_of(one, 1).verify()
    save(one, 3)
    assert one.list_steps() == [3]


def test_checkpoints_are_only_removed_if_one_that_stays_is_verified(checkpoints):
    save(checkpoints, 1, 2)
    checkpoints.directory.prune(keep=1, verified=[1])
    assert checkpoints.list_steps() == [1, 2]
    checkpoints.directory.prune(keep=1, verified=[1, 2])
    assert checkpoints.list_steps() == [2]


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
    make_metadata, in_progress = CheckpointManager._make_metadata, []

    def make_slowly(self, step, *args):
        in_progress.append(step)
        assert len(in_progress) == 1
        time.sleep(0.2)
        metadata = make_metadata(self, step, *args)
        in_progress.clear()
        return metadata

    monkeypatch.setattr(CheckpointManager, "_make_metadata", make_slowly)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step))
        assert set(range(max(1, step - 1), step)) <= set(checkpoints.list_steps())
    checkpoints.wait()
    assert checkpoints.list_steps() == [2, 3]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="no checkpoint can be .*Not a directory"):
        CheckpointManager(tmp_path / "file" / "checkpoints").prepare()
