"""A run from its page to its folder, and on from where it stopped."""

import json
import shutil

import jax
import numpy as np
import pytest

import lmx
from lmx.run.run_dir import read_last_metrics, read_metrics
from lmx.run.summary import format_summary
from lmx.run.timing import read_timing, total_seconds
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.trainer import train_run

ONE = "Mesh.data=1"
CLOCKS = ("seconds", "tokens_per_second", "mfu")


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    return train_run("tiny", tiny(ONE), tmp_path_factory.mktemp("runs") / "a").path


@pytest.fixture
def cut_short(finished, tmp_path):
    """The same run as if it had been killed after the save of step 8."""
    path = tmp_path / "cut"
    shutil.copytree(finished, path)
    shutil.rmtree(path / "checkpoints" / "00000010")
    card = json.loads((path / "metadata.json").read_text())
    del card["final"]
    (path / "metadata.json").write_text(json.dumps(card))
    return path


def measured(path):
    """Every line of metrics without what a clock decides."""
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
    picture = (finished / "plots" / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n") and len(picture) > 10_000


def test_the_card_says_what_the_run_stands_on(finished, tiny):
    card = json.loads((finished / "metadata.json").read_text())
    assert card["versions"]["jax"] == jax.__version__
    assert len(card["commit"]) == 40 and isinstance(card["uncommitted"], str)
    assert card["run_id"] == tiny().run_id() and card["final"] == read_last_metrics(
        finished
    )
    assert card["parameters"] == sum(
        leaf.size for leaf in jax.tree.leaves(lmx.restore(finished).params)
    )


def test_a_step_is_its_wait_for_data_and_its_computation(finished):
    first, *timed = read_metrics(finished)
    assert "seconds/step" not in first  # it compiled
    for row in timed:
        parts = row["seconds/data_wait"] + row["seconds/compute"]
        assert row["seconds/step"] == pytest.approx(parts)
        assert row["tokens_per_second"] == pytest.approx(128 / row["seconds/step"])


def test_a_line_of_metrics_says_how_training_goes(finished):
    row = read_last_metrics(finished)
    assert row["tokens_seen"] == 10 * 8 * 16 and row["tokens"] == 8 * 8
    assert row["perplexity"] == pytest.approx(np.exp(row["nats"]))
    assert row["learning_rate"] == pytest.approx(0.01)
    assert len(row["grad_norm/layer"]) == 2


def test_the_summary_names_the_numbers_and_the_files(finished):
    said = format_summary(finished)
    assert (
        f"training    {read_last_metrics(finished)['nats']:.4f} nats per token" in said
    )
    assert "10 steps, 1,280 tokens" in said and str(finished / "metrics.jsonl") in said


def test_the_account_has_every_second_from_the_beginning_to_the_last_note(finished):
    lines, spent = read_timing(finished), total_seconds(finished)
    assert sum(spent.values()) == pytest.approx(
        lines[-1]["clock"] - lines[0]["started"], rel=1e-4
    )
    states = {"start", "restore", "compile", "data", "step", "log", "Save", "stop"}
    assert spent.keys() == states and min(spent.values()) > 0.0
    (line,) = [
        said for said in format_summary(finished).splitlines() if "  time " in said
    ]
    assert f"compile {spent['compile'] / sum(spent.values()):.0%}" in line


def test_a_finished_run_is_left_as_it_is(finished, tiny):
    before = files(finished)
    train_run("tiny", tiny(ONE), finished)
    assert files(finished) == before


def test_going_on_ends_in_the_same_bits(finished, cut_short, tiny):
    train_run("tiny", tiny(ONE), cut_short)
    assert measured(cut_short) == measured(finished)
    whole, parts = (lmx.restore(path) for path in (finished, cut_short))
    assert whole.step == parts.step == 10
    for one, other in zip(
        jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_going_on_over_another_mesh_is_the_same_run(finished, cut_short, tiny):
    train_run("tiny", tiny("Mesh.data=2", "Mesh.fsdp=4"), cut_short)
    losses = [
        [row["loss"] for row in read_metrics(path)] for path in (finished, cut_short)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
