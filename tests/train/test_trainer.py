"""A run from its config to its folder, and its resume."""

import json
import shutil

import jax
import numpy as np
import pytest

import lmx
from lmx.config.registry import ConfigError
from lmx.run.goodput import read_timing, total_seconds
from lmx.run.run_dir import read_last_metrics, read_metrics
from lmx.run.summary import format_summary
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.trainer import RunOptions, train_run

ONE = "Mesh.data=1"
CLOCKS = ("seconds", "tokens_per_second", "mfu")


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    return train_run("tiny", tiny(ONE), tmp_path_factory.mktemp("runs") / "a").path


@pytest.fixture
def cut(finished, tmp_path):
    """The same run as if it had been killed after the save of step 8."""
    path = tmp_path / "cut"
    shutil.copytree(finished, path)
    shutil.rmtree(path / "checkpoints" / "00000010")
    metadata = json.loads((path / "metadata.json").read_text())
    del metadata["final"]
    (path / "metadata.json").write_text(json.dumps(metadata))
    return path


def metrics_of(path):
    """Every line of metrics, without timing."""
    return [
        {name: v for name, v in row.items() if not name.startswith(CLOCKS)}
        for row in read_metrics(path)
    ]


def files(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_the_folder_has_all_of_the_run(finished):
    assert CheckpointManager(finished / "checkpoints", 2).list_steps() == [8, 10]
    assert [row["step"] for row in read_metrics(finished)] == list(range(1, 11))
    assert list(finished.glob("events.out.tfevents.*"))
    image = (finished / "plots" / "loss.png").read_bytes()
    assert image.startswith(b"\x89PNG\r\n\x1a\n") and len(image) > 10_000


def test_the_metadata_describe_the_environment_and_the_result(finished, tiny):
    metadata = json.loads((finished / "metadata.json").read_text())
    assert metadata["versions"]["jax"] == jax.__version__
    assert len(metadata["commit"]) == 40 and isinstance(metadata["uncommitted"], str)
    assert metadata["run_id"] == tiny().run_id()
    assert metadata["final"] == read_last_metrics(finished)
    assert metadata["parameters"] == sum(
        leaf.size for leaf in jax.tree.leaves(lmx.restore(finished).params)
    )
    assert metadata["parameters"] - metadata["non_embedding_parameters"] == 2 * 8 * 16


def test_the_time_of_a_step_is_waiting_for_data_and_computing(finished):
    first, *timed = read_metrics(finished)
    assert "seconds/step" not in first  # it compiled
    for row in timed:
        parts = row["seconds/data_wait"] + row["seconds/compute"]
        assert row["seconds/step"] == pytest.approx(parts)
        assert row["tokens_per_second"] == pytest.approx(128 / row["seconds/step"])


def test_a_line_of_metrics_has_tokens_perplexity_and_norms(finished):
    row = read_last_metrics(finished)
    assert row["tokens_seen"] == 10 * 8 * 16 and row["tokens"] == 8 * 8
    assert row["perplexity"] == pytest.approx(np.exp(row["nats"]))
    assert row["learning_rate"] == pytest.approx(0.01)
    assert len(row["grad_norm/layer"]) == 2


def test_the_summary_names_the_numbers_and_the_files(finished):
    text, nats = format_summary(finished), read_last_metrics(finished)["nats"]
    assert f"training    {nats:.4f} nats per token" in text
    assert "10 steps, 1,280 tokens" in text and str(finished / "metrics.jsonl") in text


def test_timing_accounts_for_every_second_of_the_run(finished):
    rows, seconds = read_timing(finished), total_seconds(finished)
    assert sum(seconds.values()) == pytest.approx(
        rows[-1]["clock"] - rows[0]["started"], rel=1e-4
    )
    phases = {"start", "init", "compile", "data", "step", "log", "save", "stop"}
    assert seconds.keys() == phases and min(seconds.values()) > 0.0
    lines = format_summary(finished).splitlines()
    (line,) = [line for line in lines if "  time " in line]
    assert f"compile {seconds['compile'] / sum(seconds.values()):.0%}" in line


def test_a_finished_run_is_not_changed(finished, tiny):
    before = files(finished)
    train_run("tiny", tiny(ONE), finished)
    assert files(finished) == before


def test_a_resumed_run_ends_with_the_same_bits(finished, cut, tiny):
    train_run("tiny", tiny(ONE), cut)
    assert metrics_of(cut) == metrics_of(finished)
    full, resumed = (lmx.restore(path) for path in (finished, cut))
    assert full.step == resumed.step == 10
    for one, other in zip(
        jax.tree.leaves(full.params), jax.tree.leaves(resumed.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_run_can_resume_on_another_mesh(finished, cut, tiny):
    train_run("tiny", tiny("Mesh.data=2", "Mesh.fsdp=4"), cut)
    losses = [[row["loss"] for row in read_metrics(path)] for path in (finished, cut)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_checkpoint_of_another_run_is_refused(cut, tiny):
    with pytest.raises(ConfigError, match="holds another run"):
        train_run("tiny", tiny(ONE, "Experiment.seed=1"), cut)
    metadata = json.loads((cut / "metadata.json").read_text())
    (cut / "metadata.json").write_text(json.dumps(metadata | {"run_id": "0" * 12}))
    message = f"is a checkpoint of run {metadata['run_id']}, and this is run 000.*move"
    for use in (lmx.restore, lambda path: train_run("tiny", tiny(ONE), path)):
        with pytest.raises(ConfigError, match=message):
            use(cut)


def test_a_run_resumes_from_checkpoints_of_before_an_allowed_change(cut, tiny):
    config = tiny(ONE, "Experiment.seed=1")
    train_run("tiny", config, cut, RunOptions(allow_changes=("Experiment.seed",)))
    assert CheckpointManager(cut / "checkpoints").list_steps() == [8, 10]
    assert lmx.restore(cut).step == 10
    with pytest.raises(ConfigError, match="holds another run"):
        train_run("tiny", tiny(ONE), cut)
