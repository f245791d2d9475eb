"""Frozen parameters, and frozen arrays of a loss: trained around, never changed."""

import json
import shutil

import chex
import jax
import numpy as np
import pytest
from flax import nnx

import lmx
from lmx.analysis.batch_report import inspect_step
from lmx.analysis.replay import RecordedRun, replay
from lmx.config.registry import ConfigError
from lmx.models.params import flatten_params
from lmx.run.run_dir import read_metrics
from lmx.train.checkpoint.digest import flatten_by_path
from lmx.train.checkpoint.reader import CheckpointReader
from lmx.train.trainer import RunOptions, train_run
from tests.hash_init import HASHED
from tests.train import own_loss

assert own_loss.Distill  # which configs name

ONE = "Mesh.data=1"
NORMS_AND_HEAD = ["Experiment.trainable=['*norm*', 'head*']", "Experiment.steps=6"]
DISTILL = [
    "Experiment.loss=@Distill()",
    "Distill.teacher=@Decoder",
    "Experiment.data=@Tempered()",
    "Tempered.source=@RepeatTask()",
    "Experiment.steps=6",
    "Experiment.hooks=[@Evaluate()]",
    "Evaluate.data=@RepeatTask()",
    "Evaluate.batches=1",
    "Evaluate.every=3",
]
MESH = ["Mesh.data=2", "Mesh.fsdp=2", "Mesh.tensor=2"]
CLOCKS = ("seconds", "tokens_per_second", "mfu")


def host(tree):
    return jax.tree.map(np.array, tree)


def metrics_of(path):
    return [
        {name: v for name, v in row.items() if not name.startswith(CLOCKS)}
        for row in read_metrics(path)
    ]


def train_and_resume(config, folder):
    """A finished run, and one that resumes from the checkpoint before its last."""
    full = train_run("frozen", config, folder / "full").path
    cut = folder / "cut"
    shutil.copytree(full, cut)
    shutil.rmtree(sorted((cut / "checkpoints").glob("0*"))[-1])
    metadata = json.loads((cut / "metadata.json").read_text())
    del metadata["final"]
    (cut / "metadata.json").write_text(json.dumps(metadata))
    train_run("frozen", config, cut)
    return full, cut


def saved_tensors(path):
    reader = CheckpointReader(sorted((path / "checkpoints").glob("0*"))[-1])
    return {n: reader.open_tensor(n).shape for n in reader.read_metadata()["digests"]}


def step_twice(config):
    """The states before and after two steps, and the metrics of the second."""
    run = config.build().open()
    state = run.init()
    states = [host(state)]
    for step in range(2):
        batch = run.load_batch(run.data, run.seed, step)
        frozen = jax.tree.leaves(state.frozen)
        state, metrics = run.step(state, batch)
        assert not any(x.is_deleted() for x in frozen)
        states.append(host(state))
    return *states, metrics


SGD = ["Experiment.optimizer=@sgd", "sgd.clip=None", HASHED, ONE]


@pytest.fixture(scope="module")
def stepped(tiny):
    """`step_twice` of norms and head alone."""
    return step_twice(tiny(*NORMS_AND_HEAD, *SGD))


def test_only_what_matches_trains_and_the_rest_keeps_its_bits(tiny, stepped):
    before, _, after, _ = stepped
    chex.assert_trees_all_equal(before.frozen, after.frozen)
    names = {*flatten_params(after.params)}
    assert names and all("norm" in name or "head" in name for name in names)
    assert not any("norm" in name or "head" in name for name in
                   flatten_params(after.frozen.params))  # fmt: skip
    for one, other in zip(
        jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True
    ):
        assert (one != other).any()
    # A moment of each trained element, and counters: nothing of the frozen ones.
    trained = sum(x.size for x in jax.tree.leaves(after.params))
    moments = [x.size for x in jax.tree.leaves(after.opt_state) if x.ndim]
    assert sum(moments) == trained
    chex.assert_trees_all_equal_structs(
        after.all_params, host(tiny(ONE).build().open().init()).params
    )


def test_the_trained_part_moves_as_if_the_others_had_a_gradient_of_zero(tiny, stepped):
    """Against the gradient of all parameters, by sgd without clipping."""
    run = tiny(*SGD).build().open()
    state = run.init()
    start = host(flatten_params(state.params))
    state, _ = run.step(state, run.load_batch(run.data, run.seed, 0))
    whole = flatten_params(host(state.params))
    for name, value in flatten_params(stepped[1].all_params).items():
        moves = "norm" in name or "head" in name
        expected = whole[name] if moves else start[name]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


def test_a_teacher_is_an_argument_of_the_step_and_not_changed(tiny):
    config = tiny(*DISTILL, HASHED, ONE)
    before, _, after, metrics = step_twice(config)
    chex.assert_trees_all_equal(before.frozen, after.frozen)
    experiment = config.build()
    run = experiment.open()
    teacher = nnx.state(experiment.model(nnx.Rngs(7)))
    chex.assert_trees_all_close(
        [*jax.tree.leaves(before.frozen.loss)], [*jax.tree.leaves(host(teacher))]
    )
    assert float(metrics["loss"]) == pytest.approx(
        float(metrics["nats"] + metrics["taught"]), rel=1e-6
    )
    text = run.step.lower(run.abstract_state(), run.data.batch_at(0, 0)).as_text()
    arguments = text[text.index("@main") :].split("->")[0].count("%arg")
    leaves = jax.tree.leaves((run.abstract_state(), run.data.batch_at(0, 0)))
    assert arguments >= len(leaves) - 2  # the embedding of positions may be unused
    assert max(map(len, text.splitlines())) < 100_000  # no constant has its weights


@pytest.mark.faults
def test_frozen_parts_that_are_not_those_of_the_checkpoint_are_refused(tiny, tmp_path):
    config = tiny(*DISTILL[:4], *NORMS_AND_HEAD, ONE)
    full = train_run("frozen", config, tmp_path / "full").path
    other = tiny(
        *(*DISTILL[:4], *NORMS_AND_HEAD, ONE),
        *("Distill.seed=8", "Experiment.steps=8"),
    )
    allow = RunOptions(allow_changes=("Distill.seed", "Experiment.steps"))
    with pytest.raises(ConfigError, match="frozen arrays of the loss are not those of"):
        train_run("frozen", other, full, allow)


def test_a_pattern_that_matches_no_parameter_is_refused(tiny):
    for patterns in ("['*norm*', 'hed*']", "[]"):
        with pytest.raises(ConfigError, match="trainable"):
            tiny(f"Experiment.trainable={patterns}", ONE).build().open()


@pytest.mark.meshes
@pytest.mark.parametrize("mesh", [[ONE], MESH], ids=["one device", "a mesh"])
def test_norms_and_head_resume_to_the_same_bits_from_checkpoints_of_them_alone(
    tiny, tmp_path, mesh
):
    full, cut = train_and_resume(tiny(*NORMS_AND_HEAD, *mesh), tmp_path)
    assert metrics_of(full) == metrics_of(cut)
    one, other = lmx.restore(full), lmx.restore(cut)
    chex.assert_trees_all_equal(one.params, other.params)
    run = tiny(*NORMS_AND_HEAD, *mesh).build().open()
    abstract = run.abstract_state()
    assert saved_tensors(full) == {
        name: leaf.shape for name, leaf in flatten_by_path(abstract.trained).items()
    }
    start = flatten_params(host(run.init().all_params))
    for name, value in flatten_params(one.params).items():
        trained = "norm" in name or "head" in name
        assert trained != np.array_equal(value, start[name]), name


@pytest.mark.meshes
@pytest.mark.parametrize("mesh", [[ONE], MESH], ids=["one device", "a mesh"])
def test_distillation_is_logged_evaluated_resumed_and_replayed_to_the_same_bits(
    tiny, tmp_path, mesh
):
    config = tiny(*DISTILL, *mesh)
    full, cut = train_and_resume(config, tmp_path)
    rows = metrics_of(full)
    assert rows == metrics_of(cut)
    last = next(row for row in reversed(rows) if "nats" in row)
    assert last["perplexity"] and last["taught"] > 0
    assert any("validation/nats" in row for row in rows)
    chex.assert_trees_all_equal(lmx.restore(full).params, lmx.restore(cut).params)
    assert not any("frozen" in name for name in saved_tensors(full))
    repeated = replay(RecordedRun.open(full), 6)
    assert repeated.num_compared and not repeated.differences
    report = inspect_step(RecordedRun.open(full), 6)
    assert report.nats == pytest.approx(last["nats"], rel=1e-5)
