"""A loss, a batch and rollouts of a user's module, and what refuses them."""

import shutil
from typing import Any

import chex
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import lmx
from lmx.analysis.replay import RecordedRun, replay
from lmx.config.registry import ConfigError
from lmx.run.run_dir import read_metrics
from lmx.run.summary import format_summary
from lmx.train.trainer import train_run
from tests.train.own_loss import TemperedBatch

ONE = "Mesh.data=1"
TEMPERED = [
    "Experiment.data=@Tempered()",
    "Tempered.source=@RepeatTask()",
    "Experiment.loss=@TemperedLoss()",
]
ROLLOUTS = [
    "Experiment.data=@Rollouts()",
    "Rollouts.source=@RepeatTask()",
    "Experiment.steps=6",
    ONE,
]
CLOCKS = ("seconds", "tokens_per_second", "mfu")


def train_and_resume(config, folder):
    """A finished run, and one that resumes from the checkpoint before its last."""
    full = train_run("own", config, folder / "full").path
    cut = folder / "cut"
    shutil.copytree(full, cut)
    steps = sorted((cut / "checkpoints").glob("0*"))
    shutil.rmtree(steps[-1])
    text = (cut / "metadata.json").read_text()
    (cut / "metadata.json").write_text(text.replace('"final"', '"not_final"'))
    train_run("own", config, cut)
    return full, cut


def metrics_of(path):
    return [
        {name: v for name, v in row.items() if not name.startswith(CLOCKS)}
        for row in read_metrics(path)
    ]


@pytest.mark.meshes
def test_a_loss_and_a_batch_of_ones_own_train_the_same_sharded_and_in_parts(tiny):
    """Mesh and microbatches change nothing; other fields than B and T stay whole."""
    losses = []
    meshes = (["Mesh.data=2", "Mesh.context=2", "Mesh.fsdp=2"], [ONE])
    for overrides in (*meshes, [ONE, "Experiment.microbatches=4"]):
        run = tiny(*TEMPERED, *overrides, "Decoder.attention=@Attention").build().open()
        state, found = run.init(), []
        for step in range(2):
            batch = run.load_batch(run.data, run.seed, step)
            state, metrics = run.step(state, batch)
            found.append([float(metrics[n]) for n in ("tempered", "loss", "grad_norm")])
        losses.append(found)
        assert isinstance(batch, TemperedBatch)
        rows: Any = batch.tokens
        pair: Any = batch.pair
        assert pair.sharding.spec == PartitionSpec(*rows.sharding.spec, None)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    np.testing.assert_allclose(losses[2], losses[1], rtol=1e-5)


@pytest.mark.faults
def test_a_run_without_nats_is_logged_summarized_and_resumed(tiny, tmp_path):
    full, cut = train_and_resume(tiny(*TEMPERED, ONE), tmp_path)
    assert metrics_of(full) == metrics_of(cut)
    row = list(read_metrics(full))[-1]
    assert row["tempered"] == row["loss"] and "perplexity" not in row
    assert f"training    loss {row['loss']:.4f}" in format_summary(full)
    assert (full / "plots" / "loss.png").is_file()


@pytest.mark.faults
def test_rollouts_are_of_the_parameters_of_their_step_and_replayed_to_the_bit(
    tiny, tmp_path
):
    config = tiny(*ROLLOUTS)
    full, cut = train_and_resume(config, tmp_path)
    assert metrics_of(full) == metrics_of(cut)
    chex.assert_trees_all_equal(lmx.restore(full).params, lmx.restore(cut).params)
    repeated = replay(RecordedRun.open(full), 6)
    assert repeated.num_compared > 10 and not repeated.differences
    run = config.build().open()
    state = run.init()
    batch = run.load_batch(run.data, run.seed, 0)
    made = run.add_rollouts(state, batch)
    assert 0 < float(made.weights.sum()) < batch.tokens.size


def test_what_cannot_have_rollouts_refuses_them(tiny):
    def refused(message, *overrides):
        with pytest.raises(ConfigError, match=message):
            tiny(*ROLLOUTS, *overrides).build().open()

    refused("replicas of DiLoCo", "Experiment.local_sgd=@DiLoCo()", "DiLoCo.replicas=2",
            "DiLoCo.sync_every=2")  # fmt: skip
    refused(
        "depend on the parameters, which TemperedDataset",
        *("Experiment.data=@Tempered()", "Tempered.source=@Rollouts()"),
    )
    run = tiny(*ROLLOUTS).build().open()
    hook = tiny(
        "Experiment.hooks=[@Evaluate()]", "Evaluate.data=@Rollouts()",
        "Rollouts.source=@RepeatTask()", "Evaluate.batches=1",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="which an evaluation does not have"):
        hook.build().hooks[0].build(run)


def test_a_batch_that_its_dataset_does_not_declare_is_refused(tiny):
    with pytest.raises(ConfigError, match="dataset makes TemperedBatch .* declares"):
        tiny(*TEMPERED, "Tempered.pair=3", ONE).build().open()
    with pytest.raises(ConfigError, match="PauseTokens reads and makes Batch"):
        tiny(
            "Experiment.data=@PauseTokens()", "PauseTokens.source=@Tempered()",
            "Tempered.source=@RepeatTask()", ONE,
        ).build().open()  # fmt: skip
