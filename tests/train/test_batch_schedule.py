"""Runs whose batch shape changes: counts, compilation and resume."""

import shutil

import jax
import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.models import params
from lmx.run.run_dir import read_last_metrics, read_metrics
from lmx.train.trainer import train_run

WORDS = [
    "Experiment.data=@TextDataset()",
    "Experiment.steps=8",
    "Mesh.data=1",
    "Decoder.vocab=32",
    "TextDataset.corpus=@Text()",
    "TextDataset.tokenizer=@CharTokenizer()",
    "TextDataset.packing=@BestFitPacking()",
    "TextDataset.batch_size=@rows/PiecewiseConstant()",
    "TextDataset.sequence_length=@tokens/PiecewiseConstant()",
    "rows/PiecewiseConstant.values=(4, 8)",
    "rows/PiecewiseConstant.boundaries=(5,)",
    "tokens/PiecewiseConstant.values=(8, 16)",
    "tokens/PiecewiseConstant.boundaries=(3,)",
    "HoldoutDocuments.fraction=0.1",
]
SHAPES = [(4, 8)] * 3 + [(4, 16)] * 2 + [(8, 16)] * 3


@pytest.fixture(scope="module")
def staged(tiny, tmp_path_factory):
    """The tiny experiment on text, its batches and rows growing."""
    folder = tmp_path_factory.mktemp("staged")
    (folder / "text").mkdir()
    for number in range(60):
        (folder / "text" / f"{number}.txt").write_text(
            "a bead faded " * (number % 7 + 1)
        )

    def staged(*words):
        return tiny(*WORDS, f"Text.path={folder / 'text'}", *words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMX_CACHE", str(folder / "cache"))
        yield staged


def test_a_run_counts_the_tokens_and_flops_of_each_step(staged):
    run = staged().build().open()
    model = staged().build().abstract_model()
    tokens, cost = 0, 0.0
    for step, (batch, length) in enumerate(SHAPES):
        assert (run.batch_schedule.count_tokens(step), run.count_flops(step)) == (
            tokens,
            cost,
        )
        assert run.data.batch_at(0, step).tokens.shape == (batch, length)
        tokens += batch * length
        cost += batch * length * params.train_flops_per_token(model, length)
    assert run.batch_schedule.count_tokens(len(SHAPES)) == tokens


@pytest.mark.nightly
def test_it_compiles_once_for_each_shape_and_resumes_to_the_same_bits(staged, tmp_path):
    done = train_run(
        "staged", staged("CheckpointPolicy.every=4"), tmp_path / "whole"
    ).path
    seen = [row["tokens_seen"] for row in read_metrics(done)]
    assert seen == np.cumsum([a * b for a, b in SHAPES]).tolist()
    cut = tmp_path / "cut"
    shutil.copytree(done, cut)
    shutil.rmtree(cut / "checkpoints" / "00000008")
    train_run("staged", staged("CheckpointPolicy.every=4"), cut)
    for name in ("loss", "param_norm", "tokens_seen"):
        assert read_last_metrics(cut)[name] == read_last_metrics(done)[name]
    run = staged().build().open()
    state = run.init()
    for step in range(len(SHAPES)):
        state, _ = run.step(state, run.put_batch(run.data.batch_at(0, step)))
    assert run.step._cache_size() == 3
    assert int(jax.device_get(state.step)) == 8


def test_a_stage_beyond_the_last_step_is_not_checked(staged):
    far = staged(
        "rows/PiecewiseConstant.values=(4, 7)", "rows/PiecewiseConstant.boundaries=(9,)"
    )
    assert far.build().open().batch_schedule.count_tokens(8) == 3 * 4 * 8 + 5 * 4 * 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["Experiment.microbatches=4", "rows/PiecewiseConstant.values=(4, 6)"],
            "6 rows cannot",
        ),
        (
            ["Mesh.data=4", "rows/PiecewiseConstant.values=(4, 6)"],
            "'batch' of size 6 cannot",
        ),
        (
            ["Decoder.position=@LearnedPosition", "LearnedPosition.max_length=8"],
            "16 tokens exceed 8 learned positions",
        ),
        (
            ["TextDataset.order=@Sequential()", "Experiment.steps=500"],
            "there is no batch 499 in sequential order",
        ),
    ],
)
def test_an_invalid_later_stage_is_refused_when_a_run_is_opened(staged, words, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        staged(*words).build().open()
