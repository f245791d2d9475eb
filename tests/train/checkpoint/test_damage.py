"""Damaged checkpoints and failed saves: only intact checkpoints are used."""

import gc
import json
import resource
import time

import chex
import jax.numpy as jnp
import pytest

from lmx.config.registry import ConfigError
from lmx.models.trained_model import TrainedModel
from lmx.run import run_dir
from lmx.train.checkpoint import manager, reader, restore
from lmx.train.checkpoint.manager import CheckpointManager, SaveError
from lmx.train.checkpoint.policy import CheckpointPolicy
from lmx.train.checkpoint.reader import CheckpointReader, DamageError
from lmx.train.step import TrainState
from tests.train.checkpoint.conftest import abstract, make_state, reader_of, save
from tests.train.checkpoint.damage import flip, truncate


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
    "metadata of wrong kinds": (
        lambda path, _: (path / reader.METADATA).write_text(
            f'{{"schema": {run_dir.SCHEMA}, "digests": [], "lineage": 1}}'
        ),
        "cannot be read",
    ),
    "nested metadata": (
        lambda path, _: (path / reader.METADATA).write_text("[" * 99999),
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


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="no checkpoint can be .*Not a directory"):
        CheckpointManager(tmp_path / "file" / "checkpoints").prepare()


def test_a_checkpoint_that_the_run_removes_is_read_again_and_a_damaged_one_is_not(
    tmp_path, monkeypatch
):
    """As by `generate` while the run saves: the newest is then another one."""
    model = tuple.__new__(TrainedModel)
    steps = [tmp_path / "removed", tmp_path / "removed too", model]

    def load(weights):
        if isinstance(step := steps.pop(0), TrainedModel):
            return step
        raise DamageError(step, reader.CheckpointFault("metadata", None, "is missing"))

    monkeypatch.setattr(restore, "RunWeights", str)
    monkeypatch.setattr(restore, "_restore", load)
    assert restore.restore(tmp_path) is model
    steps[:] = [tmp_path, model]
    with pytest.raises(DamageError, match="is missing"):
        restore.restore(tmp_path)
