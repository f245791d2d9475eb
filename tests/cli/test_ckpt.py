"""`lmx ckpt`, for good and for damaged checkpoints."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx import load_experiment
from lmx.run.run_dir import SCHEMA
from lmx.train.checkpoint.compare import diff_checkpoints
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.reader import CheckpointReader
from tests.cli.conftest import TINY
from tests.train.checkpoint.damage import flip, truncate


def load(*words):
    return load_experiment(TINY, words)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """The folder of a run of two attempts, as far as `lmx ckpt` reads it."""
    path = tmp_path_factory.mktemp("ckpt") / "run"
    path.mkdir()
    (path / "experiment.json").write_text(load().to_json())
    (path / "metadata.json").write_text(json.dumps({"schema": SCHEMA}))
    w = np.random.default_rng(0).normal(size=(30, 40)).astype("float32")
    state = {"params": {"w": jnp.asarray(w), "b": jnp.ones(8)}, "step": jnp.int32(4)}
    first = CheckpointManager(path / "checkpoints", origin={"commit": "a" * 40})
    first.save(4, state)
    first.wait()
    facts = {"commit": "b" * 40, "devices": "8 x cpu", "processes": 1, "mesh": {}}
    second = CheckpointManager(path / "checkpoints", origin=facts)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
    )
    second.restore_newest(like, print)
    second.save(8, state | {"params": {"w": jnp.asarray(w * 1.5), "b": jnp.ones(8)}})
    second.wait()
    return path


@pytest.fixture
def run(run_folder, tmp_path):
    """A copy, to be damaged."""
    shutil.copytree(run_folder, tmp_path / "run")
    return tmp_path / "run"


def path_of(run, step):
    return CheckpointManager(run / "checkpoints").directory.step_path(step)


@pytest.fixture
def read_json(lmx):
    """The JSON output of a command."""

    def read_json(*words, status=0):
        code, out, err = lmx("ckpt", *map(str, words), "--json")
        assert (code, err) == (status, "")
        return json.loads(out)

    return read_json


def test_checkpoints_are_listed_with_their_roots_and_sizes(run_folder, lmx, read_json):
    rows = read_json("list", run_folder)
    assert [(row["step"], row["complete"]) for row in rows] == [(4, True), (8, True)]
    roots = [
        CheckpointReader(path_of(run_folder, step)).read_metadata()["root"]
        for step in (4, 8)
    ]
    assert [row["root"] for row in rows] == roots and roots[0] != roots[1]
    assert all(row["bytes"] > 30 * 40 * 4 for row in rows)
    out = lmx("ckpt", "list", f"{run_folder}")[1]
    assert all(root[:12] in out for root in roots) and out.count("yes") == 2


def test_truncated_and_quarantined_checkpoints_are_marked(run, lmx):
    truncate(path_of(run, 8), "params.w")
    CheckpointManager(run / "checkpoints").directory.quarantine(4)
    out = lmx("ckpt", "list", f"{run}")[1]
    assert out.count("NO") == 2 and "params.w is truncated or missing" in out
    assert "00000004.damaged" in out


def test_verify_names_tensor_and_file_and_exits_with_1(run, lmx, read_json):
    assert [row["faults"] for row in read_json("verify", run)] == [[], []]
    flip(path_of(run, 8), "params.w")
    (fault,) = read_json("verify", run, status=1)[1]["faults"]
    assert fault["tensor"] == "params.w" and fault["reason"] == "is not what was saved"
    assert (path_of(run, 8) / fault["file"]).is_file()
    status, out, _ = lmx("ckpt", "verify", f"{run}")
    assert status == 1 and "step 4: intact, 3 tensors" in out
    assert f"step 8: DAMAGED\n  {fault['file']}: params.w is not" in out
    assert lmx("ckpt", "verify", f"{run}", "--step", "4")[0] == 0


def test_diff_prints_the_norm_of_each_changed_tensor(run_folder, read_json, lmx):
    result = {
        t["tensor"]: t
        for t in read_json("diff", f"{run_folder}@4", run_folder)["tensors"]
    }
    w = np.random.default_rng(0).normal(size=(30, 40)).astype("float32")
    assert result["params.w"]["status"] == "differs"
    norm = np.linalg.norm(w.astype("float64"))
    np.testing.assert_allclose(result["params.w"]["norm"], norm, rtol=1e-6)
    np.testing.assert_allclose(result["params.w"]["relative"], 0.5, rtol=1e-6)
    assert result["params.b"]["status"] == result["step"]["status"] == "equal"
    out = lmx("ckpt", "diff", f"{run_folder}@4", f"{run_folder}")[1]
    assert out.startswith("2 of 3 tensors are equal to the bit") and "0.5" in out


def test_diff_lists_changed_settings_by_path(run_folder, run, read_json):
    (run / "experiment.json").write_text(load("Constant.peak_lr=0.02").to_json())
    result = read_json("diff", run_folder, run)
    assert result["settings"] == {"schedule.peak_lr": ["0.01", "0.02"]}
    assert {t["status"] for t in result["tensors"]} == {"equal"}


def test_diff_names_tensors_of_one_checkpoint_only_and_of_other_shapes(
    run_folder, tmp_path
):
    other = CheckpointManager(tmp_path)
    other.save(1, {"params": {"w": jnp.ones(3), "c": jnp.ones(3)}})
    other.wait()
    result = diff_checkpoints(
        CheckpointReader(path_of(run_folder, 8)),
        CheckpointReader(other.directory.step_path(1)),
    )
    statuses = {diff.tensor: diff.status for diff in result}
    assert statuses == {
        "params.b": "only in A",
        "params.c": "only in B",
        "params.w": "float32 (30, 40), float32 (3,)",
        "step": "only in A",
    }


def test_lineage_lists_each_attempt_that_led_to_a_checkpoint(
    run_folder, read_json, lmx
):
    result = read_json("lineage", run_folder)
    root = CheckpointReader(path_of(run_folder, 4)).read_metadata()["root"]
    assert [a["parent"] for a in result["lineage"]] == [None, {"step": 4, "root": root}]
    out = lmx("ckpt", "lineage", f"{run_folder}")[1].splitlines()
    assert out[0] == f"1. from the beginning; commit {'a' * 12}"
    begun = f"2. from step 4, root {root[:12]}; commit {'b' * 12}, devices 8 x cpu"
    assert out[1] == f"{begun}, processes 1"
    assert out[2] == f"step 8, root {result['root']}"


@pytest.mark.parametrize(
    "words, message",
    [
        (["list", "nowhere"], "nowhere is not a run"),
        (["verify", "RUN", "--step", "5"], "has no checkpoint of step 5: it has 4, 8"),
        (["diff", "RUN"], "write lmx ckpt diff A B"),
        (["diff", "RUN@x", "RUN"], "has no checkpoint of step x: it has 4, 8"),
        (["diff", "RUN@²", "RUN"], "has no checkpoint of step ²: it has 4, 8"),
        (["diff", f"RUN@{'4' * 200}", "RUN"], "has no checkpoint of step 444"),
    ],
)
def test_unknown_runs_and_checkpoints_are_refused(run_folder, lmx, words, message):
    words = [word.replace("RUN", f"{run_folder}") for word in words]
    status, out, err = lmx("ckpt", *words)
    assert (status, out) == (2, "") and message in err
